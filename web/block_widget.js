// The editor of block weights as a widget of a node, which grows and shrinks with it.

import { BlockEditor, forgetBlocks, HEAD_HEIGHT } from "./block_editor.js";
import { debounced, followedBy } from "./dom.js";
import { t } from "./i18n.js";
import { keepMounted } from "./nodes_2.js";

const WAIT_MS = 150;
const MARGIN = 4;
const MIN_WIDTH = 340;
const OPEN = "anyadapter_blocks_open";
const LEVEL = "anyadapter_blocks_level";
const GROWN = "anyadapter_blocks_grown";

/**
 * Adds the editor below the widgets of a node that has `blocks`, `blocks_seed` and `adapter`.
 *
 * @param {import("comfyui").Node} node
 */
export function addBlockEditor(node) {
  const widgetOf = (/** @type {string} */ name) => node.widgets.find((one) => one.name === name);
  const [blocks, adapter, seed] = ["blocks", "adapter", "blocks_seed"].map(widgetOf);
  if (!blocks || !adapter) return;
  const source = {
    adapter: () => String(adapter.value ?? ""),
    seed: () => Number(seed?.value ?? 0),
    locked: () => lockedBy(node),
    get text() {
      return String(blocks.value ?? "");
    },
    set text(text) {
      blocks.value = text;
      blocks.callback?.(text);
      node.setDirtyCanvas(true, true);
    },
  };
  const view = {
    get open() {
      return node.properties[OPEN] === true;
    },
    set open(open) {
      node.properties[OPEN] = open;
    },
    get level() {
      const level = node.properties[LEVEL];
      return level === "groups" || level === "parts" ? level : "blocks";
    },
    set level(level) {
      node.properties[LEVEL] = level;
    },
  };
  const height = () => editor.height + 2 * MARGIN;
  const editor = new BlockEditor(source, view, () => fit(node, editor));
  editor.element.style.setProperty("--height", `${HEAD_HEIGHT}px`);
  const widget = node.addDOMWidget("block_editor", "anyadapter_blocks", editor.element, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false; // not stored in the workflow
  keepMounted(node, editor.element, "blocks");

  const update = debounced(() => editor.refresh(), WAIT_MS);
  for (const one of [blocks, adapter, seed])
    if (one) one.callback = followedBy(one.callback, update);
  node.onConfigure = followedBy(node.onConfigure, () => editor.refresh()); // loaded, pasted, undone
  node.onConnectionsChange = followedBy(node.onConnectionsChange, update);
  // A run tells on which blocks of the model the layers lie, and notices a file that was replaced.
  node.onExecuted = followedBy(node.onExecuted, () => {
    forgetBlocks();
    update();
  });
  node.onRemoved = followedBy(node.onRemoved, () => editor.close());
}

/**
 * Returns why the widgets of a node are not to be edited, if they are not.
 *
 * @param {import("comfyui").Node} node
 */
function lockedBy(node) {
  const linked = (/** @type {string} */ name) =>
    node.inputs.some((input) => input.widget?.name === name && input.link != null);
  if (linked("blocks")) {
    return t(
      "blocks_linked_text",
      "blocks comes from another node, which says what the weights are.",
    );
  }
  if (linked("adapter")) {
    return t(
      "blocks_linked_file",
      "adapter comes from another node, so its blocks are known when it runs.",
    );
  }
  return "";
}

/**
 * Gives a node the size that it needs with its editor.
 *
 * What it has grown for the editor is kept with it, so that closing takes away as much and no more: the
 * rest is how large the user wants it.
 *
 * @param {import("comfyui").Node} node
 * @param {BlockEditor} editor
 */
function fit(node, editor) {
  const { element, height } = editor;
  const open = height > HEAD_HEIGHT;
  const [wider, higher] = grown(node);
  const drawn = element.closest("[data-node-id]");
  if (drawn instanceof HTMLElement) {
    // Nodes 2.0: the node is as high as its content, or as these variables say.
    const [width, full] = [drawn.offsetWidth - wider, drawn.offsetHeight - higher];
    const wanted = open ? Math.max(width, MIN_WIDTH) : width;
    element.style.setProperty("--height", `${height}px`);
    drawn.style.setProperty("--node-height", `${full + height - HEAD_HEIGHT}px`);
    drawn.style.setProperty("--node-width", `${wanted}px`);
    node.properties[GROWN] = [wanted - width, drawn.offsetHeight - full];
    return;
  }
  element.style.setProperty("--height", `${height}px`);
  const [width, full] = [node.size[0] - wider, node.size[1] - higher];
  const wanted = open ? Math.max(width, MIN_WIDTH) : width;
  const needed = Math.max(full + height - HEAD_HEIGHT, node.computeSize()[1]);
  node.properties[GROWN] = [wanted - width, needed - full];
  node.setSize([wanted, needed]);
  node.setDirtyCanvas(true, true);
}

/**
 * Returns by how much a node is wider and higher for its editor.
 *
 * @param {import("comfyui").Node} node
 * @returns {[number, number]}
 */
function grown(node) {
  const stored = node.properties[GROWN];
  const [wider, higher] = Array.isArray(stored) ? stored.map(Number) : [];
  return [wider || 0, higher || 0];
}
