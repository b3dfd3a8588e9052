// Small helpers for the widgets of the pack.

import { app } from "../../scripts/app.js";

const COPIED_MS = 1200;

/**
 * Makes an element.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number | boolean | ((event: any) => void) | undefined>} [attributes]
 *   Attributes by name; a function under `onclick` and the like becomes a listener, `true` an attribute
 *   without a value, and what is false or undefined is left out.
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.replace(/^on/, ""), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children);
  return made;
}

/**
 * Loads a style sheet of this folder, once.
 *
 * @param {string} name Its file name.
 */
export function loadStyle(name) {
  const address = new URL(name, import.meta.url).href;
  if (document.querySelector(`link[href="${address}"]`)) return;
  document.head.append(element("link", { rel: "stylesheet", href: address }));
}

/**
 * Zooms as on the bare canvas: the element of a widget would swallow the wheel.
 *
 * @param {WheelEvent} event
 */
export function zoomCanvas(event) {
  event.preventDefault();
  event.stopPropagation();
  app.canvas.processMouseWheel(event);
}

/**
 * Returns a function that calls `first`, if there is one, with all it gets, and then `second`.
 *
 * @param {((...values: any[]) => any) | null | undefined} first
 * @param {(...values: any[]) => void} second
 * @returns {(...values: any[]) => any}
 */
export function followedBy(first, second) {
  return function (/** @type {any} */ ...values) {
    // @ts-expect-error `this` is whatever the page calls it on
    const result = first?.apply(this, values);
    second(...values);
    return result;
  };
}

/**
 * Returns a function that runs `action` once after the last of several calls in a row.
 *
 * @param {(isLatest: () => boolean) => void | Promise<void>} action Gets a function that tells whether
 *   it was not called again since.
 * @param {number} waitMs How long after the last call.
 * @returns {() => void}
 */
export function debounced(action, waitMs) {
  let calls = 0;
  let timer = 0;
  return () => {
    const call = ++calls;
    clearTimeout(timer);
    timer = setTimeout(() => action(() => call === calls), waitMs);
  };
}

/**
 * Returns what an error says.
 *
 * @param {unknown} error
 */
export function sentence(error) {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Puts a text on the clipboard, also where the page came over HTTP from another machine and browsers
 * do not offer it.
 *
 * @param {string} text
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const focused = document.activeElement;
    const field = element("textarea", { style: "position: fixed; opacity: 0;" });
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    if (focused instanceof HTMLElement) focused.focus();
  }
}

/**
 * Makes a button copy a text, and look so for a moment.
 *
 * @template {HTMLElement} Button
 * @param {Button} button
 * @param {string} text
 * @param {() => void} [done] Called when it is copied.
 */
export function copiesOnClick(button, text, done = () => {}) {
  button.addEventListener("click", async () => {
    await copyText(text);
    button.classList.add("anyadapter-copied");
    setTimeout(() => button.classList.remove("anyadapter-copied"), COPIED_MS);
    done();
  });
  return button;
}
