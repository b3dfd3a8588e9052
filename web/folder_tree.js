// A tree of the folders that files lie in, of which one is chosen.

import { element } from "./dom.js";

/**
 * @typedef {object} Folder
 * @property {string} path With `/` between the names; empty for the root.
 * @property {string} name
 * @property {number} count Files in it and below it.
 * @property {Map<string, Folder>} folders
 */

export class FolderTree {
  #title;
  #all;
  #onChange;
  #chosen = "";
  #open = new Set([""]);
  /** @type {Folder} */
  #root;
  element;

  /**
   * @param {string} title What it is, for those who do not see it.
   * @param {string} all The name of the root.
   * @param {() => void} onChange Called when another folder is chosen.
   */
  constructor(title, all, onChange) {
    this.#title = title;
    this.#all = all;
    this.#onChange = onChange;
    this.#root = folder("", all);
    this.element = element("div", {
      class: "anyadapter-tree",
      role: "tree",
      "aria-label": this.#title,
      onkeydown: (event) => this.#press(event),
    });
  }

  /**
   * Shows the folders of some files. A chosen folder stays when it holds none of them.
   *
   * @param {string[]} names
   */
  show(names) {
    this.#root = folder("", this.#all);
    for (const name of names) {
      let at = this.#root;
      at.count++;
      for (const part of name.split(/[\\/]/).slice(0, -1)) {
        at = below(at, part);
        at.count++;
      }
    }
    let at = this.#root;
    for (const part of this.#chosen.split("/").filter(Boolean)) at = below(at, part);
    this.#draw();
  }

  /**
   * Unfolds all folders down to one.
   *
   * @param {string} path
   */
  open(path) {
    const parts = path.split("/");
    parts.forEach((_, index) => this.#open.add(parts.slice(0, index).join("/")));
  }

  /**
   * Whether a file is in the chosen folder or below it.
   *
   * @param {string} name
   */
  contains(name) {
    return !this.#chosen || name.replaceAll("\\", "/").startsWith(this.#chosen + "/");
  }

  #draw() {
    const hadFocus = this.element.contains(document.activeElement);
    this.element.replaceChildren(...this.#lines(this.#root, 0));
    this.element.hidden = this.#root.folders.size === 0 && !this.#chosen;
    if (hadFocus) this.#line(this.#chosen)?.focus();
  }

  /**
   * @param {Folder} one
   * @param {number} depth
   * @returns {HTMLElement[]}
   */
  #lines(one, depth) {
    const { path, name, count, folders } = one;
    const isOpen = this.#open.has(path);
    const chosen = path === this.#chosen;
    const arrow = element("span", {
      class: "anyadapter-tree-arrow",
      "aria-hidden": "true",
      onclick: (event) => {
        event.stopPropagation();
        this.#toggle(path);
      },
    });
    arrow.textContent = folders.size && path ? (isOpen ? "▾" : "▸") : "";
    const line = element(
      "div",
      {
        class: "anyadapter-tree-line",
        role: "treeitem",
        tabindex: chosen ? "0" : "-1",
        "aria-level": depth + 1,
        "aria-selected": String(chosen),
        "aria-expanded": folders.size ? String(isOpen) : undefined,
        style: `padding-left: ${4 + depth * 14}px`,
        "data-path": path,
        title: path || name,
        onclick: () => this.#choose(path),
        ondblclick: () => this.#toggle(path),
      },
      arrow,
      element("span", { class: "anyadapter-tree-name" }, name),
      element("span", { class: "anyadapter-tree-count" }, String(count)),
    );
    if (!isOpen) return [line];
    const inner = [...folders.values()].sort((a, b) => a.name.localeCompare(b.name));
    return [line, ...inner.flatMap((deeper) => this.#lines(deeper, depth + 1))];
  }

  /** @param {string} path */
  #line(path) {
    const lines = /** @type {NodeListOf<HTMLElement>} */ (
      this.element.querySelectorAll("[data-path]")
    );
    return [...lines].find((line) => line.dataset.path === path);
  }

  /** @param {string} path */
  #choose(path) {
    this.#chosen = path;
    this.#onChange();
    this.#line(path)?.focus();
  }

  /** @param {string} path */
  #toggle(path) {
    if (!path) return; // the root stays open
    if (!this.#open.delete(path)) this.#open.add(path);
    this.#draw();
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    const lines = [...this.element.children];
    const line = event.target;
    if (!(line instanceof HTMLElement) || line.dataset.path === undefined) return;
    const { path } = line.dataset;
    const isOpen = line.ariaExpanded === "true";
    const next = (/** @type {number} */ by) => {
      const other = lines[lines.indexOf(line) + by];
      if (other instanceof HTMLElement) this.#choose(other.dataset.path ?? "");
    };
    /** @type {Record<string, () => void>} */
    const keys = {
      ArrowDown: () => next(1),
      ArrowUp: () => next(-1),
      ArrowRight: () => (line.ariaExpanded === "false" ? this.#toggle(path) : isOpen && next(1)),
      ArrowLeft: () =>
        isOpen && path ? this.#toggle(path) : this.#choose(path.split("/").slice(0, -1).join("/")),
      Enter: () => this.#choose(path),
      " ": () => this.#toggle(path),
    };
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }
}

/**
 * @param {string} path
 * @param {string} name
 * @returns {Folder}
 */
function folder(path, name) {
  return { path, name, count: 0, folders: new Map() };
}

/**
 * @param {Folder} at
 * @param {string} name
 */
function below(at, name) {
  const path = at.path ? `${at.path}/${name}` : name;
  const known = at.folders.get(name) ?? folder(path, name);
  at.folders.set(name, known);
  return known;
}
