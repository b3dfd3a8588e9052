// Makes one step of the page's undo out of the many changes of one gesture.

import { app } from "../../scripts/app.js";

const PAUSE_MS = 350;

/**
 * One gesture after the other: a drag, some notches of the wheel, a key held down, a double click.
 *
 * While one goes on, the page takes no snapshot of the workflow. It ends a moment after its last change,
 * or as soon as something is done elsewhere, for that may be the undo.
 */
export class UndoStep {
  /** @type {import("comfyui").ChangeTracker | undefined} */
  #tracker;
  #timer = 0;
  #element;
  #done;

  /**
   * @param {HTMLElement} element What is changed by itself; all else is elsewhere.
   * @param {() => void} done Called after every gesture.
   */
  constructor(element, done) {
    this.#element = element;
    this.#done = done;
  }

  /** Whether a gesture goes on. */
  active = false;

  /** Begins a gesture, or goes on with the one there is. */
  begin() {
    clearTimeout(this.#timer);
    if (this.active) return;
    this.active = true;
    this.#tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    this.#tracker?.beforeChange();
    window.addEventListener("pointerdown", this.#elsewhere, true);
    window.addEventListener("keydown", this.#elsewhere, true);
  }

  /** Ends the gesture, if it does not go on soon. */
  end() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.close(), PAUSE_MS);
  }

  /** Ends the gesture now, if there is one. */
  close() {
    clearTimeout(this.#timer);
    if (!this.active) return;
    this.active = false;
    window.removeEventListener("pointerdown", this.#elsewhere, true);
    window.removeEventListener("keydown", this.#elsewhere, true);
    this.#tracker?.afterChange();
    this.#tracker = undefined;
    this.#done();
  }

  /** @param {PointerEvent | KeyboardEvent} event */
  #elsewhere = (event) => {
    const inside = event.target instanceof Node && this.#element.contains(event.target);
    if (!inside || event.ctrlKey || event.metaKey) this.close();
  };
}
