// A menu at a place of the page.

import { element } from "./dom.js";

/**
 * @typedef {object} MenuItem
 * @property {string} label
 * @property {() => void} run
 * @property {string} [keys] The keys that do the same.
 * @property {boolean} [isDisabled]
 */

let close = () => {};

/**
 * Opens a menu; closes the one that was open.
 *
 * @param {{x: number, y: number}} place In the window.
 * @param {string} label For screen readers.
 * @param {MenuItem[]} items
 */
export function openMenu(place, label, items) {
  close();
  const before = document.activeElement;
  const entries = items.map(({ label, keys, isDisabled, run }) =>
    element(
      "button",
      {
        type: "button",
        role: "menuitem",
        tabindex: -1,
        disabled: isDisabled,
        onclick: () => {
          close();
          run();
        },
      },
      element("span", {}, label),
      element("kbd", {}, keys ?? ""),
    ),
  );
  const menu = element(
    "div",
    { class: "anyadapter-menu", role: "menu", "aria-label": label },
    ...entries,
  );
  const outside = (/** @type {Event} */ event) => {
    if (!(event.target instanceof Node && menu.contains(event.target))) close();
  };
  close = () => {
    close = () => {};
    for (const kind of ["pointerdown", "wheel"]) window.removeEventListener(kind, outside, true);
    window.removeEventListener("resize", outside);
    menu.remove();
    if (before instanceof HTMLElement && before.isConnected) before.focus({ preventScroll: true });
  };
  menu.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const usable = entries.filter((entry) => !entry.disabled);
    const at = usable.findIndex((entry) => entry === document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (to !== undefined) usable.at(to % usable.length)?.focus();
    else return;
    event.preventDefault();
  });
  menu.addEventListener("contextmenu", (event) => event.preventDefault());
  for (const kind of ["pointerdown", "wheel"]) window.addEventListener(kind, outside, true);
  window.addEventListener("resize", outside);
  document.body.append(menu);
  const { offsetWidth, offsetHeight } = menu;
  menu.style.left = `${Math.max(4, Math.min(place.x, window.innerWidth - offsetWidth - 4))}px`;
  menu.style.top = `${Math.max(4, Math.min(place.y, window.innerHeight - offsetHeight - 4))}px`;
  entries.find((entry) => !entry.disabled)?.focus();
}
