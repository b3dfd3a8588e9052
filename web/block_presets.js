// Presets of block weights in the editor: choosing, saving, deleting, files.

import {
  deletePreset,
  exportPresets,
  importPresets,
  presets,
  RefusedError,
  savePreset,
} from "./api.js";
import { element, sentence } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";

/** @import { Preset } from "./api.js" */

/** @typedef {{ presets: Preset[], error?: string }} Answer */

const TAKEN = 409;
/** Of lines that were not imported. */
const MOST_TOLD = 10;
const FILE_NAME = "anyadapter_presets.json";

/**
 * @typedef {object} Host What the presets belong to.
 * @property {() => string} adapter
 * @property {() => string} text The text there is now.
 * @property {(text: string) => void} choose Takes the text of a preset.
 * @property {(sentence: string) => void} tell Shows what was done or failed.
 * @property {() => void} changed Called when a preset was saved or deleted.
 */

/** The list of presets, and a row of buttons for them that opens below. */
export class BlockPresets {
  #host;
  #refreshes = 0;
  /** @type {Preset[]} */
  #presets = [];
  list = element("select", {
    class: "anyadapter-blocks-presets",
    "aria-label": t("blocks_preset", "Preset of block weights"),
    onchange: () => this.#choose(),
  });
  more = element(
    "button",
    {
      type: "button",
      class: "anyadapter-blocks-tool",
      title: t("blocks_presets_more", "Save, delete, import and export presets"),
      "aria-label": t("blocks_presets_more", "Save, delete, import and export presets"),
      "aria-expanded": "false",
      onclick: () => this.#show(this.row.hidden ? this.#actions() : []),
    },
    icon("more"),
  );
  row = element("div", { class: "anyadapter-blocks-row", hidden: true });

  /** @param {Host} host */
  constructor(host) {
    this.#host = host;
  }

  /** Brings the list up to date. */
  async refresh() {
    const refresh = ++this.#refreshes;
    /** @type {Answer} */
    let answer = { presets: [] };
    try {
      answer = await presets(this.#host.adapter());
    } catch (error) {
      answer.error = sentence(error);
    }
    if (refresh !== this.#refreshes) return;
    this.#presets = answer.presets;
    if (answer.error) this.#host.tell(answer.error);
    this.mark();
  }

  /** Shows which preset the text is. */
  mark() {
    const current = this.#current();
    const label = t("blocks_presets", "Presets");
    const groups = [
      [t("blocks_presets_builtin", "Built in"), this.#presets.filter((one) => !one.own)],
      [t("blocks_presets_own", "Your own"), this.#presets.filter((one) => one.own)],
    ].filter(([, found]) => found?.length);
    this.list.replaceChildren(
      element("option", { value: "", selected: !current }, label),
      ...groups.map(([name, found]) =>
        element(
          "optgroup",
          { label: String(name) },
          .../** @type {Preset[]} */ (found).map((one) =>
            element(
              "option",
              { value: this.#presets.indexOf(one), selected: one === current, title: one.text },
              one.name,
            ),
          ),
        ),
      ),
    );
    this.list.title = current?.text ?? label;
  }

  #current() {
    const text = plain(this.#host.text());
    const alike = this.#presets.filter((one) => plain(one.text) === text || one.name === text);
    return alike.find((one) => one.own) ?? alike[0];
  }

  #choose() {
    const chosen = this.#presets[Number(this.list.value || -1)];
    if (chosen) this.#host.choose(chosen.text);
    else this.mark();
  }

  /** @param {HTMLElement[]} content */
  #show(content) {
    this.row.replaceChildren(...content);
    this.row.hidden = content.length === 0;
    this.more.ariaExpanded = String(!this.row.hidden);
    const first = content.find((one) => !("disabled" in one && one.disabled));
    first?.focus();
  }

  #actions() {
    const current = this.#current();
    const own = current?.own ? current : undefined;
    return [
      button(t("blocks_presets_save", "Save as …"), () =>
        this.#show(this.#naming(own?.name ?? "")),
      ),
      button(
        own
          ? t("blocks_presets_delete_named", "Delete “{name}”", { name: own.name })
          : t("blocks_presets_delete", "Delete"),
        () => this.#do(() => this.#delete(own?.name ?? "")),
        own === undefined,
      ),
      button(t("blocks_presets_import", "Import …"), () => this.#pickFile()),
      button(t("blocks_presets_export", "Export"), () => this.#do(() => this.#export())),
    ];
  }

  /** @param {string} name */
  #naming(name) {
    const field = element("input", {
      type: "text",
      class: "anyadapter-blocks-name",
      value: name,
      placeholder: t("blocks_presets_name", "Name of the preset"),
      "aria-label": t("blocks_presets_name", "Name of the preset"),
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        event.stopPropagation();
        if (event.key === "Enter") save();
        if (event.key === "Escape") this.#show(this.#actions());
      },
    });
    const save = () => this.#do(() => this.#save(field.value));
    return [field, button(t("blocks_presets_save_now", "Save"), save), this.#cancel()];
  }

  #cancel() {
    return button(t("blocks_cancel", "Cancel"), () => this.#show(this.#actions()));
  }

  /**
   * Asks whether to replace what is there.
   *
   * @param {string} question
   * @param {() => Promise<void>} replace
   */
  #ask(question, replace) {
    this.#show([
      element("span", { role: "alert" }, question),
      button(t("blocks_presets_replace", "Replace"), () => this.#do(replace)),
      this.#cancel(),
    ]);
  }

  /**
   * Does something with the server, and says what is wrong if it fails.
   *
   * @param {() => Promise<void>} action
   */
  async #do(action) {
    try {
      await action();
    } catch (error) {
      this.#host.tell(sentence(error));
    }
  }

  /**
   * @param {string} name
   * @param {boolean} [replace]
   */
  async #save(name, replace = false) {
    // Nothing is written as nothing, which is no preset.
    const text = this.#host.text().trim() || "ALL:1";
    try {
      const saved = await savePreset(name, text, replace);
      await this.#changed(t("blocks_presets_saved", "Saved as “{name}”.", { name: saved.name }));
    } catch (error) {
      if (!(error instanceof RefusedError && error.status === TAKEN)) throw error;
      this.#ask(error.message, () => this.#save(name, true));
    }
  }

  /** @param {string} name */
  async #delete(name) {
    await deletePreset(name);
    await this.#changed(t("blocks_presets_deleted", "“{name}” is deleted.", { name }));
  }

  async #export() {
    const address = URL.createObjectURL(new Blob([await exportPresets()]));
    element("a", { href: address, download: FILE_NAME }).click();
    URL.revokeObjectURL(address);
  }

  #pickFile() {
    const field = element("input", {
      type: "file",
      onchange: () =>
        this.#do(async () => {
          const text = await field.files?.[0]?.text();
          if (text !== undefined) await this.#import(text);
        }),
    });
    field.click();
  }

  /**
   * @param {string} text
   * @param {boolean} [replace]
   */
  async #import(text, replace = false) {
    const { taken, already, refused } = await importPresets(text, replace);
    const done = t("blocks_presets_imported", "{count} presets are imported.", {
      count: taken.length,
    });
    const told = refused.slice(0, MOST_TOLD);
    if (refused.length > MOST_TOLD) {
      const more = { count: refused.length - MOST_TOLD };
      told.push(t("blocks_presets_more_refused", "And {count} more were not taken.", more));
    }
    await this.#changed([done, ...told].join(" "));
    if (already.length === 0 || replace) return;
    const names = already.join(", ");
    this.#ask(t("blocks_presets_already", "You have others called {names}.", { names }), () =>
      this.#import(text, true),
    );
  }

  /** @param {string} done */
  async #changed(done) {
    this.#host.changed();
    await this.refresh();
    this.#show([]);
    this.#host.tell(done);
  }
}

/**
 * @param {string} label
 * @param {() => void} onclick
 * @param {boolean} [disabled]
 */
function button(label, onclick, disabled = false) {
  return element("button", { type: "button", disabled, onclick }, label);
}

/**
 * Returns a text without what makes no difference.
 *
 * @param {string} text
 */
function plain(text) {
  const items = text.split(/[,\n]/).map((item) => item.replace(/\s/g, ""));
  return items.filter(Boolean).join(",") || "ALL:1";
}
