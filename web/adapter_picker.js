// The dialog in which one adapter file is chosen among thousands.

import { adapters, preview } from "./api.js";
import { Inspector, fileSize } from "./adapter_inspector.js";
import { openDialog } from "./dialog.js";
import { element, loadStyle, sentence } from "./dom.js";
import { FolderTree } from "./folder_tree.js";
import { t } from "./i18n.js";

/** @import { Adapter } from "./api.js" */

const ASK_AGAIN_MS = 800;
const BEYOND_VIEW = 4;
const SHAPES = {
  list: { height: 52, width: Infinity },
  grid: { height: 216, width: 152 },
};
const REMEMBERED = "anyadapter.picker";
const UNKNOWN = "\0unknown";

/** @type {Adapter[]} What the server said last, to show at once the next time. */
let lastListing = [];

/**
 * Lets the user choose an adapter file.
 *
 * @param {object} options
 * @param {string} [options.current] The file that is chosen now.
 * @param {string} [options.title]
 * @returns {Promise<string | null>} Its name in the host's list; null if the dialog was just closed.
 */
export function pickAdapter({ current = "", title = t("picker_title", "Choose an adapter") } = {}) {
  return new Promise((resolve) => new Picker(current, title, resolve));
}

/**
 * Returns the files that fit a search: all of its words, in any order, somewhere in the name, the method,
 * the family or the base model.
 *
 * @template {{ name: string, method: string | null, family: string | null, base_model: string, rank: string }} File
 * @param {File[]} files
 * @param {string} search
 * @returns {File[]}
 */
export function found(files, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return files;
  return files.filter((file) => {
    const { name, method, family, base_model } = file;
    const text = `${name}\n${method ?? ""}\n${family ?? ""}\n${base_model}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

class Picker {
  /** @type {Adapter[]} */
  #files = lastListing;
  /** @type {Adapter[]} The files that are listed, in order. */
  #listed = [];
  /** @type {Map<string, HTMLElement>} */
  #drawn = new Map();
  #current;
  #highlighted;
  /** @type {string | null} */
  #chosen = null;
  #closed = false;
  #options = remembered();

  #search = element("input", {
    class: "anyadapter-search",
    type: "search",
    role: "combobox",
    "aria-expanded": "true",
    "aria-controls": "anyadapter-files",
    "aria-autocomplete": "list",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: t("picker_search", "Search name, method, base model …"),
    "aria-label": t("picker_search_label", "Search"),
    oninput: () => this.#filter(true),
  });
  #family = element("select", {
    "aria-label": t("picker_family", "Family"),
    onchange: () => this.#filter(true),
  });
  #sort = element(
    "select",
    { "aria-label": t("picker_sort", "Order"), onchange: () => this.#filter(true) },
    element("option", { value: "name" }, t("picker_by_name", "by name")),
    element("option", { value: "modified" }, t("picker_by_date", "newest first")),
  );
  #shape = element("button", {
    type: "button",
    class: "anyadapter-button",
    onclick: () => this.#toggleShape(),
  });
  #tree = new FolderTree(t("picker_folders", "Folders"), t("picker_all", "All files"), () =>
    this.#filter(true),
  );
  #sheet = element("div", { class: "anyadapter-sheet", role: "presentation" });
  #list = element(
    "div",
    {
      id: "anyadapter-files",
      class: "anyadapter-files",
      role: "listbox",
      tabindex: "0",
      "aria-label": t("picker_files", "Adapter files"),
      onscroll: () => this.#draw(),
    },
    this.#sheet,
  );
  #status = element("div", { class: "anyadapter-status", role: "status" });
  #inspector = new Inspector();
  #use = element(
    "button",
    {
      type: "button",
      class: "anyadapter-button anyadapter-primary",
      onclick: () => this.#choose(),
    },
    t("picker_use", "Use this adapter"),
  );
  #observer = new ResizeObserver(() => this.#draw());

  /**
   * @param {string} current
   * @param {string} title
   * @param {(name: string | null) => void} resolve
   */
  constructor(current, title, resolve) {
    loadStyle("adapter_picker.css");
    this.#current = this.#highlighted = current;
    this.#sort.value = this.#options.sort;
    const bar = element(
      "div",
      { class: "anyadapter-bar" },
      this.#search,
      this.#family,
      this.#sort,
      this.#shape,
    );
    const middle = element("div", { class: "anyadapter-middle" }, this.#list, this.#status);
    const right = element(
      "div",
      { class: "anyadapter-right" },
      this.#inspector.element,
      element("div", { class: "anyadapter-foot" }, this.#use),
    );
    this.#dialog = openDialog({
      title,
      className: "anyadapter-picker",
      content: [
        bar,
        element("div", { class: "anyadapter-columns" }, this.#tree.element, middle, right),
      ],
      onClose: () => {
        this.#closed = true;
        this.#observer.disconnect();
        resolve(this.#chosen);
      },
    });
    this.#dialog.addEventListener("keydown", (event) => this.#press(event));
    this.#applyShape();
    this.#observer.observe(this.#list);
    this.#tree.open(folderOf(current));
    this.#search.focus();
    this.#show();
    this.#showHighlighted(true);
    this.#load();
  }

  #dialog;

  /** Asks the server, again and again while it has files to read. */
  async #load() {
    while (!this.#closed) {
      try {
        const { adapters: files, pending } = await adapters();
        if (this.#closed) return;
        const order = new Intl.Collator(undefined, { numeric: true });
        files.sort((a, b) => order.compare(fileOf(a.name), fileOf(b.name)));
        this.#files = lastListing = files;
        this.#pending = pending;
        this.#problem = "";
      } catch (error) {
        this.#problem = sentence(error);
      }
      const first = !this.#listed.length;
      this.#show();
      if (first) this.#showHighlighted(true);
      if (!this.#pending) return;
      await new Promise((resume) => setTimeout(resume, ASK_AGAIN_MS));
    }
  }

  #pending = 0;
  #problem = "";

  /** Shows the files that the server named last. */
  #show() {
    this.#offerFamilies();
    this.#filter(false);
    this.#inspector.show(this.#highlighted);
  }

  #offerFamilies() {
    const chosen = this.#family.value || this.#options.family;
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const { family, read } of this.#files) {
      if (read) counts.set(family ?? UNKNOWN, (counts.get(family ?? UNKNOWN) ?? 0) + 1);
    }
    const families = [...counts].sort(([a], [b]) => a.localeCompare(b));
    const options = families.map(([family, count]) =>
      element(
        "option",
        { value: family },
        `${family === UNKNOWN ? t("picker_unknown", "unknown") : family} (${count})`,
      ),
    );
    this.#family.replaceChildren(
      element("option", { value: "" }, t("picker_every_family", "every family")),
      ...options,
    );
    this.#family.value = counts.has(chosen) ? chosen : "";
  }

  /** @param {boolean} byUser Whether the user asked for other files. */
  #filter(byUser) {
    if (byUser) this.#remember();
    const family = this.#family.value;
    const fitting = found(this.#files, this.#search.value).filter(
      (file) => !family || (file.read && (file.family ?? UNKNOWN) === family),
    );
    this.#tree.show(fitting.map(({ name }) => name));
    const inFolder = fitting.filter(({ name }) => this.#tree.contains(name));
    this.#listed =
      this.#sort.value === "modified" ? inFolder.sort((a, b) => b.modified - a.modified) : inFolder;
    if (byUser && !this.#listed.some(({ name }) => name === this.#highlighted)) {
      this.#highlight(this.#listed[0]?.name ?? "");
    }
    if (byUser) this.#showHighlighted(false);
    this.#draw();
    this.#say();
  }

  #say() {
    const count = this.#listed.length;
    const texts = [
      count === 1 ? t("picker_one", "1 file") : t("picker_count", "{count} files", { count }),
    ];
    if (count < this.#files.length) {
      texts.push(t("picker_of", "of {count}", { count: this.#files.length }));
    }
    if (this.#pending) {
      texts.push("· " + t("picker_reading", "reading {count} more …", { count: this.#pending }));
    }
    this.#status.textContent = this.#problem || texts.join(" ");
    this.#status.classList.toggle("anyadapter-problem", Boolean(this.#problem));
    this.#list.dataset.empty = count ? "" : this.#emptiness();
  }

  #emptiness() {
    if (this.#problem) return this.#problem;
    return this.#files.length
      ? t("picker_nothing", "Nothing fits. Try fewer words, another folder or every family.")
      : t("picker_no_files", "There are no files in the LoRA folders.");
  }

  // The list: only what is in view is in the page.

  get #layout() {
    const shape = SHAPES[this.#options.shape];
    const width = this.#list.clientWidth;
    const columns = Math.max(1, Math.floor(width / shape.width));
    return { ...shape, columns, width: width / columns };
  }

  #draw() {
    const { height, width, columns } = this.#layout;
    const rows = Math.ceil(this.#listed.length / columns);
    this.#sheet.style.height = `${rows * height}px`;
    const first = Math.max(0, Math.floor(this.#list.scrollTop / height) - BEYOND_VIEW);
    const last = Math.ceil((this.#list.scrollTop + this.#list.clientHeight) / height) + BEYOND_VIEW;
    const inView = this.#listed.slice(first * columns, last * columns);
    const before = this.#drawn;
    this.#drawn = new Map();
    inView.forEach((file, offset) => {
      const index = first * columns + offset;
      const key = JSON.stringify(file);
      const line = before.get(key) ?? this.#line(file);
      before.delete(key);
      line.style.width = `${width}px`;
      line.style.height = `${height}px`;
      line.style.transform = `translate(${(index % columns) * width}px, ${Math.floor(index / columns) * height}px)`;
      line.id = `anyadapter-file-${index}`;
      line.ariaPosInSet = String(index + 1);
      line.ariaSetSize = String(this.#listed.length);
      const highlighted = file.name === this.#highlighted;
      line.ariaSelected = String(highlighted);
      line.classList.toggle("anyadapter-highlighted", highlighted);
      line.classList.toggle("anyadapter-current", file.name === this.#current);
      if (line.parentNode !== this.#sheet) this.#sheet.append(line);
      this.#drawn.set(key, line);
    });
    for (const line of before.values()) line.remove();
    const place = this.#place;
    const described = place < 0 ? "" : `anyadapter-file-${place}`;
    for (const holder of [this.#search, this.#list]) {
      holder.setAttribute("aria-activedescendant", described);
    }
    this.#use.disabled = place < 0;
  }

  /** @param {Adapter} file */
  #line(file) {
    const name = fileOf(file.name);
    const folder = folderOf(file.name);
    const title = element("span", { class: "anyadapter-name" }, name.replace(/\.[^.]+$/, ""));
    const rank = file.rank && t("picker_rank", "rank {rank}", { rank: file.rank });
    const facts = file.error
      ? element("span", { class: "anyadapter-error-line" }, t("picker_no_adapter", "no adapter"))
      : element(
          "span",
          { class: "anyadapter-line-facts" },
          [file.method, rank].filter(Boolean).join(" · ") || (file.read ? "" : "…"),
        );
    const where = element("span", { class: "anyadapter-line-folder" }, folder);
    const badge = file.family ? [element("span", { class: "anyadapter-badge" }, file.family)] : [];
    const size = element("span", { class: "anyadapter-line-size" }, fileSize(file.size));
    return element(
      "div",
      {
        class: "anyadapter-line",
        role: "option",
        title: file.error || file.name,
        "data-name": file.name,
        onclick: () => this.#highlight(file.name),
        ondblclick: () => this.#choose(),
      },
      thumbnail(file),
      element("span", { class: "anyadapter-line-text" }, title, element("span", {}, facts, where)),
      element("span", { class: "anyadapter-line-end" }, ...badge, size),
    );
  }

  /** Which of the listed files is highlighted; -1 for none. */
  get #place() {
    return this.#listed.findIndex(({ name }) => name === this.#highlighted);
  }

  /** @param {string} name */
  #highlight(name) {
    this.#highlighted = name;
    this.#inspector.show(name);
    this.#draw();
  }

  /** @param {boolean} centre Whether it shall be in the middle of the view. */
  #showHighlighted(centre) {
    const place = this.#place;
    if (place < 0) {
      this.#list.scrollTop = 0;
      return;
    }
    const { height, columns } = this.#layout;
    const top = Math.floor(place / columns) * height;
    const view = this.#list.clientHeight;
    const { scrollTop } = this.#list;
    if (centre) this.#list.scrollTop = top - (view - height) / 2;
    else if (top < scrollTop) this.#list.scrollTop = top;
    else if (top + height > scrollTop + view) this.#list.scrollTop = top + height - view;
    this.#draw();
  }

  /** @param {number} by */
  #move(by) {
    const last = this.#listed.length - 1;
    const place = this.#place;
    const to = Math.min(last, Math.max(0, place < 0 && by < Infinity ? 0 : place + by));
    const file = this.#listed[to];
    if (!file) return;
    this.#highlight(file.name);
    this.#showHighlighted(false);
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    const inSearch = event.target === this.#search;
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!inSearch && event.target !== this.#list) return;
    if (event.key === "Escape" && inSearch) {
      event.preventDefault(); // it would only empty the field
      this.#dialog.close();
      return;
    }
    const { columns, height } = this.#layout;
    const page = Math.max(1, Math.floor(this.#list.clientHeight / height)) * columns;
    const sideways = columns > 1 && !(inSearch && this.#search.value);
    /** @type {Record<string, number | undefined>} */
    const moves = {
      ArrowDown: columns,
      ArrowUp: -columns,
      PageDown: page,
      PageUp: -page,
      ArrowRight: sideways ? 1 : undefined,
      ArrowLeft: sideways ? -1 : undefined,
      Home: inSearch ? undefined : -Infinity,
      End: inSearch ? undefined : Infinity,
    };
    const by = moves[event.key];
    if (by !== undefined) this.#move(by);
    else if (event.key === "Enter") this.#choose();
    else {
      // What is typed while the list has the focus is a search.
      if (!inSearch && event.key.length === 1 && event.key !== " ") this.#search.focus();
      return;
    }
    event.preventDefault();
  }

  #choose() {
    if (this.#place < 0) return;
    this.#chosen = this.#highlighted;
    this.#dialog.close();
  }

  #toggleShape() {
    this.#options.shape = this.#options.shape === "list" ? "grid" : "list";
    this.#applyShape();
    this.#remember();
    this.#showHighlighted(true);
    this.#list.focus();
  }

  #applyShape() {
    const isList = this.#options.shape === "list";
    this.#list.classList.toggle("anyadapter-grid", !isList);
    this.#shape.textContent = isList ? t("picker_grid", "Pictures") : t("picker_list", "List");
    for (const line of this.#drawn.values()) line.remove();
    this.#drawn.clear();
    this.#draw();
  }

  #remember() {
    this.#options.family = this.#family.value;
    this.#options.sort = this.#sort.value;
    try {
      localStorage.setItem(REMEMBERED, JSON.stringify(this.#options));
    } catch {
      // full or forbidden: then it is not remembered
    }
  }
}

/** @returns {{ shape: "list" | "grid", sort: string, family: string }} */
function remembered() {
  const options = { shape: /** @type {"list" | "grid"} */ ("list"), sort: "name", family: "" };
  try {
    const kept = JSON.parse(localStorage.getItem(REMEMBERED) ?? "{}");
    if (kept.shape === "grid") options.shape = "grid";
    if (kept.sort === "modified") options.sort = "modified";
    if (typeof kept.family === "string") options.family = kept.family;
  } catch {
    // not ours, or forbidden
  }
  return options;
}

/** @param {Adapter} file */
function thumbnail(file) {
  const frame = element(
    "span",
    { class: "anyadapter-thumbnail", "aria-hidden": "true" },
    fileOf(file.name).slice(0, 1).toUpperCase(),
  );
  if (file.preview) {
    frame.append(
      element("img", {
        src: preview(file.name),
        alt: "",
        loading: "lazy",
        decoding: "async",
        draggable: "false",
        onerror: (event) => event.target.remove(),
      }),
    );
  }
  return frame;
}

/** @param {string} name */
function fileOf(name) {
  return name.split(/[\\/]/).at(-1) ?? name;
}

/** @param {string} name */
function folderOf(name) {
  return name.split(/[\\/]/).slice(0, -1).join("/");
}
