// A plain dialog to choose an adapter from, with a search.

import { adapterNames } from "./adapter_names.js";
import { element } from "./dom.js";
import { t } from "./i18n.js";

/**
 * Lets the user choose; returns null if nothing was chosen.
 *
 * @param {{current: string, title: string}} options
 * @returns {Promise<string | null>}
 */
export async function pickFromList({ current, title }) {
  const names = await adapterNames();
  return await new Promise((resolve) => {
    const search = element("input", {
      type: "search",
      class: "anyadapter-list-search",
      placeholder: t("stack.search", "Search"),
      "aria-label": t("stack.search", "Search"),
    });
    const list = element("div", {
      class: "anyadapter-list-names",
      role: "listbox",
      "aria-label": title,
    });
    const dialog = element(
      "dialog",
      { class: "anyadapter-list", "aria-label": title },
      search,
      list,
    );
    const choose = (/** @type {string} */ name) => dialog.close(name);
    const fill = () => {
      const words = search.value.toLowerCase().split(/\s+/);
      const found = names.filter((name) =>
        words.every((word) => name.toLowerCase().includes(word)),
      );
      const entry = (/** @type {string} */ name) =>
        element(
          "button",
          {
            type: "button",
            role: "option",
            "aria-selected": String(name === current),
            onclick: () => choose(name),
          },
          name,
        );
      const none = t("stack.noFiles", "No file is called so.");
      list.replaceChildren(...(found.length ? found.map(entry) : [none]));
    };
    search.addEventListener("input", fill);
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation();
      const buttons = [...list.querySelectorAll("button")];
      const at = buttons.findIndex((button) => button === document.activeElement);
      if (event.key === "ArrowDown") (buttons[at + 1] ?? search).focus();
      else if (event.key === "ArrowUp") (at > 0 ? buttons[at - 1] : search)?.focus();
      else if (event.key === "Enter" && at < 0) buttons[0]?.click();
      else return;
      event.preventDefault();
    });
    dialog.addEventListener("pointerdown", (event) => {
      if (event.target === dialog) dialog.close("");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
    fill();
    document.body.append(dialog);
    dialog.showModal();
    search.focus();
    list.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "center" });
  });
}
