// A dialog over the page, for what needs more room than a node has.

import { element, loadStyle } from "./dom.js";
import { t } from "./i18n.js";

const CAN_HAVE_FOCUS =
  "a[href], button:not([disabled]), input:not([disabled]), select:not([disabled]), summary, [tabindex='0']";

/**
 * Opens a dialog; it closes by Escape, by a click outside of it, and by its button.
 *
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.className Added to that of all dialogs.
 * @param {HTMLElement[]} options.content
 * @param {() => void} [options.onClose] Called once, however it is closed.
 */
export function openDialog({ title, className, content, onClose }) {
  loadStyle("dialog.css");
  const close = element(
    "button",
    {
      class: "anyadapter-dialog-close",
      type: "button",
      "aria-label": t("dialog_close", "Close"),
      onclick: () => dialog.close(),
    },
    "✕",
  );
  const heading = element("h2", {}, title);
  const dialog = element(
    "dialog",
    {
      class: `anyadapter-dialog ${className}`,
      role: "dialog",
      "aria-modal": "true",
      "aria-label": title,
    },
    element("header", { class: "anyadapter-dialog-header" }, heading, close),
    ...content,
  );
  // What happens here is not for the shortcuts of the page: Delete would remove the chosen nodes.
  for (const kind of ["keydown", "keyup", "keypress", "copy", "cut", "paste", "wheel"]) {
    dialog.addEventListener(kind, (event) => event.stopPropagation());
  }
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Tab") keepFocusInside(dialog, event);
  });
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target === dialog && isOutside(dialog, event)) dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Goes from the last element to the first and back, where the browser would leave the page.
 *
 * @param {HTMLElement} dialog
 * @param {KeyboardEvent} event
 */
function keepFocusInside(dialog, event) {
  const all = [...dialog.querySelectorAll(CAN_HAVE_FOCUS)].filter(
    (one) => one instanceof HTMLElement && one.offsetParent !== null,
  );
  const edge = event.shiftKey ? all[0] : all.at(-1);
  const other = event.shiftKey ? all.at(-1) : all[0];
  if (document.activeElement !== edge || !(other instanceof HTMLElement)) return;
  event.preventDefault();
  other.focus();
}

/**
 * @param {HTMLElement} dialog
 * @param {PointerEvent} event
 */
function isOutside(dialog, event) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  const { clientX: x, clientY: y } = event;
  return x < left || x > right || y < top || y > bottom;
}
