// The row below the list of files in a node: opens the picker, and says when the file is gone.

import { showAdapterInfo } from "./adapter_inspector.js";
import { pickAdapter } from "./adapter_picker.js";
import { app } from "../../scripts/app.js";
import { element, followedBy, loadStyle, zoomCanvas } from "./dom.js";
import { t } from "./i18n.js";

/** @import { Node, Widget } from "comfyui" */

const COMBO = "adapter";
const MARGIN = 4;
const HEIGHT = 20 + 2 * MARGIN;

/**
 * Adds the row to a node that has the list.
 *
 * @param {Node} node
 */
export function addAdapterBrowser(node) {
  const combo = node.widgets.find(({ name }) => name === COMBO);
  if (!combo) return;
  loadStyle("adapter_picker.css");
  const browse = element("button", {
    type: "button",
    class: "anyadapter-browse-button",
    onclick: () => choose(node, combo),
  });
  const info = element(
    "button",
    {
      type: "button",
      class: "anyadapter-browse-info",
      title: t("browse_info", "Adapter info"),
      "aria-label": t("browse_info", "Adapter info"),
      onclick: () => showAdapterInfo(String(combo.value)),
    },
    "i",
  );
  const row = element("div", { class: "anyadapter-browse", onwheel: zoomCanvas }, browse, info);
  const widget = node.addDOMWidget("browse", "anyadapter_browse", row, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
  });
  widget.computeSize = () => [0, HEIGHT];
  widget.computeLayoutSize = undefined; // else the row would share what room is left in the node
  widget.serialize = false; // not stored in the workflow
  moveBehind(node, widget, combo);

  const update = () => {
    const linked = node.inputs.some((input) => input.widget?.name === COMBO && input.link != null);
    const missing = !linked && isMissing(combo);
    const name = String(combo.value ?? "");
    row.classList.toggle("anyadapter-missing", missing);
    browse.textContent = missing
      ? t("browse_missing", "missing: {name}, choose another", { name })
      : t("browse", "Browse …");
    browse.title = missing
      ? t("browse_missing_hint", "{name} is not in the LoRA folders (any more).", { name })
      : "";
    browse.disabled = linked;
    info.disabled = linked || missing || !name;
  };
  const updateSoon = () => setTimeout(update);
  combo.callback = followedBy(combo.callback, updateSoon);
  node.onConfigure = followedBy(node.onConfigure, updateSoon); // loaded, pasted, undone
  node.onConnectionsChange = followedBy(node.onConnectionsChange, updateSoon);
  node.refreshComboInNode = followedBy(node.refreshComboInNode, updateSoon);
  update();
}

/**
 * Returns what the menu of a node has for its file.
 *
 * @param {Node} node
 */
export function adapterMenuItems(node) {
  const combo = node.widgets?.find(({ name }) => name === COMBO);
  if (!combo || isMissing(combo)) return [];
  return [
    {
      content: t("browse_info", "Adapter info"),
      callback: () => showAdapterInfo(String(combo.value)),
    },
  ];
}

/**
 * @param {Node} node
 * @param {Widget} combo
 */
async function choose(node, combo) {
  const before = combo.value;
  const name = await pickAdapter({ current: String(before ?? "") });
  if (name === null || name === before) return;
  app.canvas.emitBeforeChange(); // one step of undo
  const values = names(combo);
  if (!values.includes(name)) values.push(name); // made since the page fetched the list
  combo.value = name;
  combo.callback?.(name, app.canvas, node);
  node.onWidgetChanged?.(combo.name, name, before, combo);
  app.canvas.setDirty(true, true);
  app.canvas.emitAfterChange();
}

/**
 * Puts a widget that is not stored behind another one. ComfyUI stores the values of widgets by their place
 * and leaves a gap for it, but reads them without gaps: so the gap is taken out.
 *
 * @param {Node} node
 * @param {Widget} widget
 * @param {Widget} other
 */
function moveBehind(node, widget, other) {
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.splice(node.widgets.indexOf(other) + 1, 0, widget);
  node.onSerialize = followedBy(node.onSerialize, (stored) => {
    stored.widgets_values = stored.widgets_values?.filter(() => true); // passes over gaps
  });
}

/** @param {Widget} combo */
function isMissing(combo) {
  const spelled = (/** @type {unknown} */ name) => String(name).replaceAll("\\", "/");
  return Boolean(combo.value) && !names(combo).map(spelled).includes(spelled(combo.value));
}

/**
 * @param {Widget} combo
 * @returns {string[]}
 */
function names(combo) {
  const values = combo.options?.values ?? [];
  return typeof values === "function" ? values() : values;
}
