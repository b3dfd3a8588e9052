// What there is to know about one adapter file: facts, trigger words, tags, training, metadata.

import { adapter, preview } from "./api.js";
import { openDialog } from "./dialog.js";
import { copiesOnClick, element, loadStyle, sentence } from "./dom.js";
import { t } from "./i18n.js";

/** @import { About, Adapter, Description } from "./api.js" */

const TAGS_AT_FIRST = 40;
const LONG_VALUE = 2000;

/**
 * Opens a dialog with all about one file.
 *
 * @param {string} name As the host lists it.
 */
export function showAdapterInfo(name) {
  loadStyle("adapter_picker.css");
  const inspector = new Inspector();
  openDialog({
    title: t("info_title", "About this adapter"),
    className: "anyadapter-info-dialog",
    content: [inspector.element],
  });
  inspector.show(name);
}

/** An element that shows one file at a time. */
export class Inspector {
  #shown = "";
  /** @type {Map<string, Adapter & About>} */
  #known = new Map();
  #body = element("div", { class: "anyadapter-inspector-body" });
  #said = element("div", { class: "anyadapter-only-read", role: "status" });
  element = element(
    "section",
    { class: "anyadapter-inspector", "aria-label": t("info_title", "About this adapter") },
    this.#body,
    this.#said,
  );

  /** @param {string} name The file; empty for none. */
  async show(name) {
    if (name === this.#shown) return;
    this.#shown = name;
    if (!name) {
      this.#body.replaceChildren(
        element(
          "p",
          { class: "anyadapter-empty" },
          t("info_none", "Choose a file to see what is in it."),
        ),
      );
      return;
    }
    try {
      const about = this.#known.get(name) ?? (await adapter(name));
      this.#known.set(name, about);
      if (name === this.#shown) this.#body.replaceChildren(...this.#content(about));
    } catch (error) {
      if (name !== this.#shown) return;
      const text = sentence(error);
      this.#body.replaceChildren(element("p", { class: "anyadapter-error" }, text));
    }
    this.#body.scrollTop = 0;
  }

  /** @param {Adapter & About} about */
  #content(about) {
    const { description } = about;
    /** @type {(HTMLElement | null)[]} */
    const parts = [heading(about), picture(about)];
    if (about.error) parts.push(element("p", { class: "anyadapter-error" }, about.error));
    parts.push(
      this.#words(
        t("info_trigger_words", "Trigger words"),
        "trigger",
        description.trigger_words.map(({ text, source }) => ({ text, hint: SOURCES[source]() })),
      ),
      definitions(facts(about)),
      this.#words(
        t("info_tags", "Tags of the training images"),
        "tags",
        description.tags.map(([text, count]) => ({ text, count })),
      ),
      section(t("info_training", "Training"), definitions(training(description))),
      section(t("info_text", "Description"), paragraph(description.text)),
      section(t("info_usage", "How to use it"), paragraph(description.usage_hint)),
      section(t("info_notes", "Notes"), notes(about)),
      this.#metadata(about.metadata),
    );
    return parts.filter((part) => part !== null);
  }

  /**
   * @param {string} title
   * @param {string} name For styles and tests.
   * @param {{ text: string, count?: number, hint?: string }[]} words
   */
  #words(title, name, words) {
    if (!words.length) return null;
    const list = element("div", { class: "anyadapter-chips", "data-words": name });
    const chip = (/** @type {typeof words[number]} */ { text, count, hint }) =>
      this.#copies(
        element(
          "button",
          {
            type: "button",
            class: "anyadapter-chip",
            title: [t("info_copy_word", "Click to copy"), hint].filter(Boolean).join(" · "),
          },
          element("span", {}, text),
          ...(count === undefined ? [] : [element("small", {}, String(count))]),
        ),
        text,
      );
    list.append(...words.slice(0, TAGS_AT_FIRST).map(chip));
    const more = words.length - TAGS_AT_FIRST;
    if (more > 0) {
      const button = element(
        "button",
        {
          type: "button",
          class: "anyadapter-link",
          onclick: () => button.replaceWith(...words.slice(TAGS_AT_FIRST).map(chip)),
        },
        t("info_more", "{count} more", { count: more }),
      );
      list.append(button);
    }
    const all = words.map(({ text }) => text).join(", ");
    const copy = element(
      "button",
      { type: "button", class: "anyadapter-link" },
      t("info_copy_all", "copy all"),
    );
    return section(title, list, words.length > 1 ? this.#copies(copy, all) : undefined);
  }

  /** @param {Record<string, string>} metadata */
  #metadata(metadata) {
    const count = Object.keys(metadata).length;
    if (!count) return null;
    const text = element("pre", { tabindex: "0" });
    const copy = element(
      "button",
      { type: "button", class: "anyadapter-link" },
      t("info_copy_all", "copy all"),
    );
    const details = element(
      "details",
      {
        class: "anyadapter-metadata",
        ontoggle: () => {
          if (!text.textContent) text.textContent = readable(metadata);
        },
      },
      element("summary", {}, t("info_metadata", "Metadata, {count} entries", { count })),
      this.#copies(copy, JSON.stringify(metadata, null, 2)),
      text,
    );
    return details;
  }

  /**
   * Makes a button copy a text and say so.
   *
   * @param {HTMLButtonElement} button
   * @param {string} text
   */
  #copies(button, text) {
    return copiesOnClick(button, text, () => {
      const short = text.length > 60 ? `${text.slice(0, 60)}…` : text;
      this.#said.textContent = t("info_copied", "Copied: {text}", { text: short });
    });
  }
}

const SOURCES = {
  metadata: () => t("info_source_metadata", "from the file"),
  beside: () => t("info_source_beside", "from the information beside the file"),
  folder: () => t("info_source_folder", "name of a folder of training images"),
};

/** @type {Record<string, () => string>} */
const TRAINING = {
  steps: () => t("info_steps", "Steps"),
  epochs: () => t("info_epochs", "Epochs"),
  images: () => t("info_images", "Images"),
  batch_size: () => t("info_batch_size", "Batch size"),
  rank: () => t("info_rank", "Rank"),
  alpha: () => t("info_alpha", "Alpha"),
  learning_rate: () => t("info_learning_rate", "Learning rate"),
  learning_rate_model: () => t("info_learning_rate_model", "Learning rate, model"),
  learning_rate_text_encoder: () => t("info_learning_rate_clip", "Learning rate, text"),
  optimizer: () => t("info_optimizer", "Optimiser"),
  scheduler: () => t("info_scheduler", "Scheduler"),
  noise_offset: () => t("info_noise_offset", "Noise offset"),
  min_snr_gamma: () => t("info_min_snr_gamma", "Min SNR gamma"),
  clip_skip: () => t("info_clip_skip", "CLIP skip"),
  network: () => t("info_network", "Network"),
  software: () => t("info_software", "Made with"),
  comment: () => t("info_comment", "Comment"),
};

/** @param {Adapter & About} about */
function heading(about) {
  const file = about.name.split(/[\\/]/).at(-1) ?? about.name;
  const title = about.description.title || file.replace(/\.[^.]+$/, "");
  return element(
    "div",
    { class: "anyadapter-inspector-heading" },
    element("h3", {}, title),
    element("div", { class: "anyadapter-path" }, about.name),
  );
}

/** @param {Adapter & About} about */
function picture(about) {
  if (!about.preview) return null;
  return element("img", {
    class: "anyadapter-inspector-picture",
    src: preview(about.name),
    alt: t("info_picture", "Picture of {name}", { name: about.name }),
    onerror: (event) => event.target.remove(),
  });
}

/**
 * @param {Adapter & About} about
 * @returns {[label: string, value: string][]}
 */
function facts(about) {
  const { description } = about;
  const layers = [
    about.layers_model &&
      t("info_layers_model", "{count} in the model", { count: about.layers_model }),
    about.layers_text_encoders &&
      t("info_layers_clip", "{count} in the text encoders", { count: about.layers_text_encoders }),
  ];
  return [
    [t("info_method", "Method"), about.method ?? ""],
    [t("info_rank", "Rank"), about.rank],
    [t("info_family", "Family"), about.family ?? ""],
    [t("info_base_model", "Base model"), about.base_model],
    [t("info_layers", "Layers"), layers.filter(Boolean).join(", ")],
    [t("info_size", "Size"), fileSize(about.size)],
    [t("info_date", "Trained"), date(description.date)],
    [t("info_modified", "File of"), new Date(about.modified * 1000).toLocaleDateString()],
    [t("info_resolution", "Resolution"), description.resolution],
    [t("info_author", "Author"), description.author],
    [t("info_license", "Licence"), description.license],
  ];
}

/**
 * @param {Description} description
 * @returns {[label: string, value: string][]}
 */
function training(description) {
  return Object.entries(TRAINING).map(([name, label]) => [
    label(),
    description.training[name] ?? "",
  ]);
}

/** @param {Adapter & About} about */
function notes(about) {
  const unclaimed =
    about.unclaimed &&
    t("info_unclaimed", "{count} tensors are not understood.", { count: about.unclaimed });
  return paragraph([...about.notes, unclaimed].filter(Boolean).join("\n"));
}

/**
 * @param {string} title
 * @param {HTMLElement | null} content
 * @param {HTMLElement} [action]
 */
function section(title, content, action) {
  if (!content) return null;
  return element(
    "div",
    { class: "anyadapter-section" },
    element("h4", {}, element("span", {}, title), ...(action ? [action] : [])),
    content,
  );
}

/** @param {[label: string, value: string][]} pairs */
function definitions(pairs) {
  const filled = pairs.filter(([, value]) => value);
  if (!filled.length) return null;
  return element(
    "dl",
    { class: "anyadapter-facts" },
    ...filled.flatMap(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]),
  );
}

/** @param {string} text */
function paragraph(text) {
  return text ? element("p", { class: "anyadapter-text" }, text) : null;
}

/**
 * Returns metadata as indented JSON, in which texts that are JSON themselves are opened.
 *
 * @param {Record<string, string>} metadata
 */
function readable(metadata) {
  const opened = Object.entries(metadata).map(([key, text]) => [key, meant(text)]);
  return JSON.stringify(Object.fromEntries(opened), null, 2);
}

/** @param {string} text */
function meant(text) {
  if (text.startsWith("data:") && text.length > LONG_VALUE) return `${text.slice(0, 60)}…`;
  if (!/^\s*[{[]/.test(text)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** @param {number} bytes */
export function fileSize(bytes) {
  const units = ["B", "KB", "MB", "GB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < units.length - 1; unit++) bytes /= 1000;
  return `${bytes < 10 && unit ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

/** @param {string} text As in the metadata. */
function date(text) {
  const moment = new Date(text);
  return text && !isNaN(moment.getTime()) ? moment.toLocaleDateString() : text;
}
