// The editor of block weights as a widget of a node, which grows and shrinks with it.

import { BlockEditor, forgetBlocks } from "./block_editor.js";
import { debounced, followedBy } from "./dom.js";
import { addFoldingWidget, growNode } from "./folding.js";
import { t } from "./i18n.js";

const WAIT_MS = 150;
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
  const editor = new BlockEditor(source, view, () =>
    growNode(node, editor.element, editor.height, GROWN),
  );
  addFoldingWidget(node, editor, { name: "block_editor", kind: "blocks", fills: false });

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
