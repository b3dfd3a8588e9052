// The editor of an Adapter Stack: its rows, over the text that says the same and is the truth.

import { showAdapterInfo } from "./adapter_inspector.js";
import { adapterNames, onAdapterNames } from "./adapter_names.js";
import { pickAdapter } from "./adapter_picker.js";
import { element, followedBy, loadStyle, zoomCanvas } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";
import { keepMounted } from "./nodes_2.js";
import { RowView } from "./stack_row.js";
import { formatRow, meant, newRow, readLines, shortNames } from "./stack_text.js";
import { UndoStep } from "./undo.js";

/** @import { Line, Row } from "./stack_text.js" */
/** @import { Shown } from "./stack_row.js" */

const MARGIN = 8;
const HEAD_HEIGHT = 26;
const FOOT_HEIGHT = 34;
const ROW_HEIGHT = 30;
const ROWS_SHOWN = 12;
const UNFOLDED_HEIGHT = 560;
const TEXT_HEIGHT = 92;
const EDGE = 24;

const COLUMNS = "anyadapter_clip_column";
const TEXT = "anyadapter_text";
const UNFOLDED = "anyadapter_unfolded";

/**
 * Makes the widget of an input with the text of a stack, for the page's table of widgets.
 *
 * @param {import("comfyui").Node} node
 * @param {string} name Of the input.
 */
export function stackWidget(node, name) {
  loadStyle("stack_editor.css");
  const editor = new StackEditor(node, name);
  const widget = node.addDOMWidget(name, "anyadapter_stack", editor.element, {
    margin: MARGIN,
    getValue: () => editor.text,
    setValue: (text) => editor.read(String(text ?? "")),
    getMinHeight: () => editor.height + 2 * MARGIN,
  });
  keepMounted(node, editor.element, "stack");
  editor.onWrite = () => widget.callback?.(widget.value);
  node.onConfigure = followedBy(node.onConfigure, () => editor.configured());
  node.onConnectionsChange = followedBy(node.onConnectionsChange, () => editor.refresh());
  node.onRemoved = followedBy(node.onRemoved, () => editor.close());
  return { widget };
}

class StackEditor {
  onWrite = () => {};
  #node;
  #name;
  /** @type {Line[]} */
  #lines = [];
  /** @type {RowView[]} In the order of the rows. */
  #views = [];
  /** @type {string[] | null} The host's list, once it has come. */
  #names = null;
  #height = HEAD_HEIGHT + FOOT_HEIGHT + ROW_HEIGHT;
  #isFitted = false;
  /** The height that the node needed at last. */
  #needed = 0;
  #undo;
  #forget;

  #all = element("button", {
    type: "button",
    class: "anyadapter-switch",
    role: "checkbox",
    "aria-label": t("stack.all", "All on"),
    title: t("stack.allHelp", "All on, or all off"),
    onclick: () => this.#toggleAll(),
  });
  #count = element("span", { class: "anyadapter-stack-count" });
  #modelTitle = element("span", { class: "anyadapter-stack-column" });
  #clipTitle = element("span", { class: "anyadapter-stack-column" }, "CLIP");
  #columns = tool("columns", t("stack.columns", "Strength of CLIP apart"), () =>
    this.#toggleColumns(),
  );
  #textTool = tool("text", t("stack.text", "Text"), () => this.#toggleText());
  #rows = element("div", {
    class: "anyadapter-stack-rows",
    role: "list",
    "aria-label": t("stack.adapters", "Adapters"),
  });
  #list = element("div", { class: "anyadapter-stack-list" }, this.#rows);
  #input = element("textarea", {
    class: "anyadapter-stack-area",
    spellcheck: "false",
    wrap: "off",
    hidden: true,
    "aria-label": t("stack.text", "Text"),
    placeholder: "style.safetensors | 0.8",
    oninput: () => this.#typed(),
  });
  #note = element("div", { class: "anyadapter-stack-note", role: "status", hidden: true });
  #add = element("button", {
    type: "button",
    class: "anyadapter-stack-add",
    onclick: () => this.#addRow(),
  });
  element = element(
    "div",
    {
      class: "anyadapter-stack",
      role: "group",
      "data-capture-wheel": "true", // or Nodes 2.0 would take it before the list
      title: "", // else the tooltip of the input would be that of every button
      "aria-label": t("stack.label", "Adapter stack"),
    },
    element(
      "div",
      { class: "anyadapter-stack-header" },
      this.#all,
      this.#count,
      this.#modelTitle,
      this.#clipTitle,
      this.#columns,
      this.#textTool,
    ),
    this.#list,
    this.#note,
    this.#input,
    this.#add,
  );
  #observer = new ResizeObserver(() => this.#fit());

  /**
   * @param {import("comfyui").Node} node
   * @param {string} name Of the input.
   */
  constructor(node, name) {
    this.#node = node;
    this.#name = name;
    this.#undo = new UndoStep(this.element, () => {});
    this.#add.append(icon("plus"), t("stack.add", "Add adapter"));
    this.element.addEventListener("wheel", (event) => this.#onWheel(event));
    for (const kind of /** @type {const} */ (["pointerdown", "pointermove", "pointerup"])) {
      this.element.addEventListener(kind, (event) => event.stopPropagation());
    }
    this.#forget = onAdapterNames(() => void this.#askNames());
    this.#observer.observe(this.#rows);
    this.read("");
    void this.#askNames();
  }

  /** What the node sends and stores. */
  text = "";

  /** In pixels, of all that is to be seen without making the node higher. */
  get height() {
    return this.#height;
  }

  /**
   * Takes a text from elsewhere.
   *
   * @param {string} text
   */
  read(text) {
    if (text === this.text && this.#lines.length) return;
    this.text = text;
    this.#lines = readLines(text);
    this.#build();
  }

  /** Called when the node has its properties and values. */
  configured() {
    this.#isFitted = false;
    this.#build();
  }

  /** Brings everything up to date. */
  refresh() {
    const rows = this.#views.map((view) => view.row);
    const linked = this.#node.inputs?.some(
      (input) => input.widget?.name === this.#name && input.link != null,
    );
    const isOn = rows.filter((row) => row.isOn).length;
    const columns = this.#hasColumns;
    const short = shortNames(rows.map((row) => this.#file(row.adapter) || row.adapter));
    for (const [index, view] of this.#views.entries()) {
      view.show(view.row, this.#shown(view.row, short[index] ?? "", columns));
    }
    this.#all.setAttribute("aria-checked", isOn && isOn < rows.length ? "mixed" : String(isOn > 0));
    this.#all.disabled = rows.length === 0;
    this.#count.textContent = rows.length
      ? t("stack.count", "{on} of {all}", { on: isOn, all: rows.length })
      : "";
    this.#modelTitle.textContent = columns
      ? t("stack.model", "Model")
      : t("stack.strengthModel", "Strength");
    this.#modelTitle.hidden = rows.length === 0;
    this.#clipTitle.hidden = rows.length === 0 || !columns;
    this.#columns.setAttribute("aria-pressed", String(columns));
    this.#textTool.setAttribute("aria-pressed", String(this.#showsText));
    this.#input.hidden = !this.#showsText;
    if (document.activeElement !== this.#input) this.#input.value = this.text;
    this.#note.textContent = linked
      ? t("stack.linked", "The text comes from another node; this is not read.")
      : "";
    this.#note.hidden = !linked;
    this.element.classList.toggle("anyadapter-locked", Boolean(linked));
    this.#fit();
  }

  close() {
    this.#observer.disconnect();
    this.#forget();
    for (const view of this.#views) view.close();
  }

  get #hasColumns() {
    return (
      this.#node.properties[COLUMNS] === true ||
      this.#views.some(({ row }) => row.strengthClip !== row.strengthModel)
    );
  }

  get #showsText() {
    return this.#node.properties[TEXT] === true;
  }

  /** Makes the rows anew, keeping those whose adapter stands in the same place. */
  #build() {
    const unfolded = this.#node.properties[UNFOLDED];
    const before = this.#views;
    const rows = this.#lines.flatMap((line) => line.row ?? []);
    this.#views = rows.map((row, index) => {
      const old = before[index];
      const view = old?.row.adapter === row.adapter ? old : new RowView(row, this.#rowHost);
      view.row = row;
      return view;
    });
    for (const view of before) if (!this.#views.includes(view)) view.close();
    for (const [index, view] of this.#views.entries()) {
      view.open(Array.isArray(unfolded) && unfolded.includes(index));
    }
    this.#place();
    this.refresh();
  }

  /** Puts the rows and what is wrong with lines into the list. */
  #place() {
    const views = [...this.#views];
    const shown = this.#lines.flatMap((line) => {
      if (line.row) return views.shift()?.element ?? [];
      return line.error ? badLine(line, () => this.#showText()) : [];
    });
    if (!shown.length) {
      shown.push(
        element(
          "div",
          { class: "anyadapter-stack-empty" },
          t("stack.empty", "No adapters yet. They add up, in any order."),
        ),
      );
    }
    const current = [...this.#rows.children];
    if (shown.length === current.length && shown.every((one, index) => one === current[index]))
      return;
    this.#rows.replaceChildren(...shown);
  }

  /**
   * @param {Row} row
   * @param {string} name
   * @param {boolean} columns
   * @returns {Shown}
   */
  #shown(row, name, columns) {
    if (!this.#names) return { name, file: "", problem: "", columns };
    const files = meant(row.adapter, this.#names);
    let problem = "";
    if (files.length > 1) {
      problem = t("stack.ambiguous", "{name} can be any of these: {files}", {
        name: row.adapter,
        files: files.join(", "),
      });
    } else if (!files.length) {
      problem = t("stack.missing", "{name} is not in the LoRA folders.", { name: row.adapter });
    }
    return { name, file: problem ? "" : (files[0] ?? ""), problem, columns };
  }

  /** @param {string} name */
  #file(name) {
    const files = this.#names ? meant(name, this.#names) : [];
    return files.length === 1 ? files[0] : "";
  }

  async #askNames() {
    try {
      this.#names = await adapterNames();
    } catch {
      this.#names = null; // then no file is known to be missing
    }
    this.refresh();
  }

  /** Writes the rows into the text, each in its line; what is no row stays. */
  #write() {
    const views = [...this.#views];
    for (const line of this.#lines) {
      if (!line.row) continue;
      const row = views.shift()?.row;
      if (!row || row === line.row) continue;
      line.row = row;
      line.text = formatRow(row);
    }
    this.text = this.#lines.map((line) => line.text).join("\n");
    this.onWrite();
    this.refresh();
    this.#node.setDirtyCanvas(true, true);
  }

  /** @param {() => void} change */
  #once(change) {
    this.#undo.begin();
    change();
    this.#undo.close();
  }

  /** @param {Line[]} lines Must be as many rows as there are views. */
  #relined(lines) {
    this.#lines = lines.length ? lines : [{ text: "" }];
    this.#place();
    this.#write();
    this.#keepUnfolded();
  }

  #keepUnfolded() {
    const open = this.#views.flatMap((view, index) => (view.isOpen ? index : []));
    if (open.length) this.#node.properties[UNFOLDED] = open;
    else delete this.#node.properties[UNFOLDED];
  }

  /** @type {import("./stack_row.js").RowHost} */
  #rowHost = {
    change: () => this.#write(),
    gesture: (goesOn) => (goesOn ? this.#undo.begin() : this.#undo.end()),
    pick: (view) => void this.#replace(view),
    menu: (view, place) => this.#openMenu(view, place),
    move: (view, by) => this.#move(view, by),
    drag: (view, event) => this.#drag(view, event),
    unfold: (view, isOpen) => {
      this.#undo.begin();
      view.open(isOpen);
      this.#keepUnfolded();
      this.#fit();
      this.#undo.end(); // a moment later: what is below the row has yet to come
    },
    remove: (view) => this.#remove(view),
  };

  async #addRow() {
    const title = t("stack.add", "Add adapter");
    const adapter = await pickAdapter({ title });
    if (!adapter) return;
    this.#once(() => this.#insert(this.#views.length, newRow(adapter)));
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#add.focus();
  }

  /**
   * @param {number} index Among the rows.
   * @param {Row} row
   */
  #insert(index, row) {
    const lines = [...this.#lines];
    const places = lines.flatMap((line, place) => (line.row ? place : []));
    let place = places[index] ?? lines.length;
    while (place && index >= places.length && !lines[place - 1]?.text.trim()) place--;
    lines.splice(place, index >= places.length ? lines.length - place : 0, {
      text: formatRow(row),
      row,
    });
    this.#views.splice(index, 0, new RowView(row, this.#rowHost));
    this.#relined(lines);
  }

  /** @param {RowView} view */
  async #replace(view) {
    const adapter = await pickAdapter({ current: view.file });
    if (!adapter || adapter === view.row.adapter || !this.#views.includes(view)) return;
    this.#once(() => {
      view.row = { ...view.row, adapter };
      this.#write();
    });
  }

  /** @param {RowView} view */
  #remove(view) {
    const index = this.#views.indexOf(view);
    if (index < 0) return;
    this.#once(() => {
      const place = this.#lines.flatMap((line, place) => (line.row ? place : []))[index];
      view.close();
      this.#views.splice(index, 1);
      this.#relined(this.#lines.filter((_, one) => one !== place));
    });
    const next = this.#views[index] ?? this.#views.at(-1);
    if (next) next.focusHandle();
    else this.#add.focus();
  }

  /**
   * @param {RowView} view
   * @param {number} by How many places down.
   */
  #move(view, by) {
    const index = this.#views.indexOf(view);
    const to = index + by;
    if (to < 0 || to >= this.#views.length) return;
    this.#once(() => {
      this.#views.splice(index, 1);
      this.#views.splice(to, 0, view);
      this.#reordered();
    });
    view.focusHandle();
    view.element.scrollIntoView({ block: "nearest" });
  }

  /** Gives the lines of rows to the views in their new order. */
  #reordered() {
    const moved = new Map(this.#lines.flatMap((line) => (line.row ? [[line.row, line]] : [])));
    const views = [...this.#views];
    this.#relined(
      this.#lines.map((line) => {
        const row = line.row && views.shift()?.row;
        return (row && moved.get(row)) ?? line;
      }),
    );
  }

  /**
   * Moves a row with the pointer: the others step aside, and the list follows at its edges.
   *
   * @param {RowView} view
   * @param {PointerEvent} event
   */
  #drag(view, event) {
    if (event.button !== 0 || !(event.currentTarget instanceof HTMLElement)) return;
    const handle = event.currentTarget;
    const dragged = view.element;
    const before = [...this.#views];
    let pointer = event.clientY;
    const grip = pointer - dragged.getBoundingClientRect().top;
    const follow = () => {
      const list = this.#list.getBoundingClientRect();
      const scale = list.height / this.#list.offsetHeight || 1;
      if (pointer < list.top + EDGE * scale) this.#list.scrollTop -= 4;
      if (pointer > list.bottom - EDGE * scale) this.#list.scrollTop += 4;
      dragged.style.transform = "";
      this.#stepAside(view, pointer);
      const { top } = dragged.getBoundingClientRect();
      dragged.style.transform = `translateY(${(pointer - grip - top) / scale}px)`;
    };
    const move = (/** @type {PointerEvent} */ moved) => {
      pointer = moved.clientY;
      follow();
    };
    const stop = (/** @type {boolean} */ take) => {
      handle.removeEventListener("pointermove", move);
      handle.removeEventListener("lostpointercapture", drop);
      window.removeEventListener("keydown", cancel, true);
      clearInterval(timer);
      dragged.classList.remove("anyadapter-dragged");
      dragged.style.transform = "";
      const after = take ? this.#views : before;
      const isMoved = after.some((one, index) => one !== before[index]);
      this.#views = after;
      if (isMoved) this.#once(() => this.#reordered());
      else this.#place();
    };
    const drop = () => stop(true);
    const cancel = (/** @type {KeyboardEvent} */ pressed) => {
      if (pressed.key !== "Escape") return;
      pressed.preventDefault();
      pressed.stopPropagation();
      stop(false);
      handle.releasePointerCapture(event.pointerId);
    };
    const timer = setInterval(follow, 30);
    dragged.classList.add("anyadapter-dragged");
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", move);
    handle.addEventListener("lostpointercapture", drop);
    window.addEventListener("keydown", cancel, true);
  }

  /**
   * Lets a row change places with its neighbours until the pointer is over it. The neighbours are moved
   * and not the row, which would lose the pointer.
   *
   * @param {RowView} view
   * @param {number} pointer
   */
  #stepAside(view, pointer) {
    for (;;) {
      const index = this.#views.indexOf(view);
      const [above, below] = [this.#views[index - 1], this.#views[index + 1]];
      if (above && pointer < middle(above.element)) {
        view.element.after(above.element);
        this.#views.splice(index - 1, 2, view, above);
      } else if (below && pointer > middle(below.element)) {
        view.element.before(below.element);
        this.#views.splice(index, 2, below, view);
      } else return;
    }
  }

  #toggleAll() {
    const isOn = this.#all.getAttribute("aria-checked") !== "true";
    this.#once(() => {
      for (const view of this.#views) view.row = { ...view.row, isOn };
      this.#write();
    });
  }

  #toggleColumns() {
    const columns = !this.#hasColumns;
    this.#once(() => {
      this.#node.properties[COLUMNS] = columns;
      if (!columns) {
        for (const view of this.#views) {
          if (view.row.strengthClip === view.row.strengthModel) continue;
          view.row = { ...view.row, strengthClip: view.row.strengthModel };
        }
      }
      this.#write();
    });
  }

  #toggleText() {
    this.#once(() => {
      this.#node.properties[TEXT] = !this.#showsText;
      this.refresh();
    });
  }

  #showText() {
    if (!this.#showsText) this.#toggleText();
    this.#input.focus();
  }

  #typed() {
    this.#undo.begin();
    this.text = this.#input.value;
    this.#lines = readLines(this.text);
    this.onWrite();
    this.#build();
    this.#undo.end();
  }

  /**
   * @param {RowView} view
   * @param {{x: number, y: number}} place
   */
  #openMenu(view, place) {
    const index = this.#views.indexOf(view);
    const { isOn } = view.row;
    openMenu(place, view.row.adapter, [
      {
        label: t("stack.info", "Info"),
        run: () => showAdapterInfo(view.file),
        isDisabled: view.element.classList.contains("anyadapter-missing"),
      },
      {
        label: isOn ? t("stack.off", "Switch off") : t("stack.on", "Switch on"),
        run: () => {
          view.row = { ...view.row, isOn: !isOn };
          this.#once(() => this.#write());
        },
      },
      {
        label: t("stack.up", "Move up"),
        keys: "Alt+\u2191",
        run: () => this.#move(view, -1),
        isDisabled: index === 0,
      },
      {
        label: t("stack.down", "Move down"),
        keys: "Alt+\u2193",
        run: () => this.#move(view, 1),
        isDisabled: index === this.#views.length - 1,
      },
      {
        label: t("stack.duplicate", "Duplicate"),
        run: () => this.#once(() => this.#insert(index + 1, { ...view.row })),
      },
      { label: t("stack.remove", "Remove"), keys: "Del", run: () => this.#remove(view) },
    ]);
  }

  /**
   * Makes the node as high as its rows need. What the user does makes it higher or lower by as much as the
   * rows; what comes by itself, as after loading, leaves a node alone that was made higher than it must be.
   */
  #fit() {
    const isUnfolded = this.#views.some((view) => view.isOpen);
    const shown = this.#rows.childElementCount;
    const measured = this.#rows.offsetHeight; // 0 while it is not in the page, or far away
    if (this.#isFitted && !measured) return;
    const rows = measured || shown * ROW_HEIGHT;
    const most = isUnfolded ? UNFOLDED_HEIGHT : ROWS_SHOWN * ROW_HEIGHT;
    const note = this.#note.hidden ? 0 : this.#note.offsetHeight || ROW_HEIGHT;
    const text = this.#showsText ? TEXT_HEIGHT : 0;
    const height = HEAD_HEIGHT + FOOT_HEIGHT + Math.min(rows, most) + note + text;
    const growth = height - this.#height;
    this.#height = height;
    this.element.style.minHeight = `${height}px`;
    this.#list.style.setProperty("--most", `${most}px`);
    const node = this.#node;
    if (!node.graph || (this.#isFitted && !growth)) return;
    const [width, now] = node.size;
    const needed = node.computeSize()[1];
    const isByUser = this.#isFitted && this.#undo.active;
    const isOnCanvas = !this.element.closest("[data-node-id]"); // Nodes 2.0 sees to it itself
    const isTight = isOnCanvas && Math.abs(now - this.#needed) <= 1;
    const wanted = Math.max(needed, isByUser ? now + growth : isTight ? 0 : now);
    this.#needed = needed;
    this.#isFitted = measured > 0;
    if (wanted !== now) node.setSize([width, wanted]);
    node.setDirtyCanvas(true, true);
  }

  /** @param {WheelEvent} event */
  #onWheel(event) {
    const { scrollTop, scrollHeight, clientHeight } = this.#list;
    const scrolls = event.deltaY < 0 ? scrollTop > 0 : scrollTop + clientHeight < scrollHeight - 1;
    const inList = event.target instanceof Node && this.#list.contains(event.target);
    const inText = event.target === this.#input;
    if (event.ctrlKey || event.metaKey || !((inList && scrolls) || inText)) zoomCanvas(event);
    else event.stopPropagation();
  }
}

/**
 * @param {Line} line
 * @param {() => void} mend
 */
function badLine(line, mend) {
  return element(
    "div",
    { class: "anyadapter-stack-bad", role: "listitem", title: line.error },
    icon("warning"),
    element("span", { class: "anyadapter-stack-text" }, line.error ?? ""),
    element(
      "button",
      { type: "button", class: "anyadapter-chip", onclick: mend },
      t("stack.mend", "Edit"),
    ),
  );
}

/**
 * @param {import("./icons.js").PictureName} picture
 * @param {string} label
 * @param {() => void} onclick
 */
function tool(picture, label, onclick) {
  const made = element("button", {
    type: "button",
    class: "anyadapter-tool",
    "aria-label": label,
    "aria-pressed": "false",
    title: label,
    onclick,
  });
  made.append(icon(picture));
  return made;
}

/** @param {HTMLElement} row */
function middle(row) {
  const { top, height } = row.getBoundingClientRect();
  return top + height / 2;
}
