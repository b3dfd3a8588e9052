// A training as its node shows it: the curve of losses, how far it is, and pictures made on the way.
//
// Before the first run it is one line.

import { stopTraining } from "./api.js";
import { openDialog } from "./dialog.js";
import { copiesOnClick, element, followedBy, loadStyle, sentence, zoomCanvas } from "./dom.js";
import { addFoldingWidget, foldingFrame, growNode, HEAD_HEIGHT } from "./folding.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { inFigures, smoothed, TrainingCurve } from "./training_curve.js";
import { ask, nodeAt, placesOf, takeOutput, trainingOf, watchTrainings } from "./training_runs.js";
import { UndoStep } from "./undo.js";

/** @import { Sample, Training } from "./api.js" */

/** @typedef {keyof typeof SPANS} Smoothing */

/**
 * @typedef {object} View How a training is looked at; kept by whoever has it.
 * @property {boolean} open
 * @property {Smoothing} smoothing
 * @property {boolean} logarithmic
 */

const OPEN = "anyadapter_training_open";
const SMOOTHING = "anyadapter_training_smoothing";
const LOGARITHMIC = "anyadapter_training_logarithmic";
const GROWN = "anyadapter_training_grown";
/** Of elements that Nodes 2.0 lets take the room that is left in a node. */
const EXPANDS = "widget-expands";
/** Over which share of all steps losses are smoothed. */
const SPANS = { none: 0, some: 0.02, much: 0.05 };
/** Of the parts of the body in pixels, each with the gap before it. */
const HEIGHTS = { curve: 186, samples: 70, foot: 30 };

/**
 * Adds the view below the widgets of a node that trains.
 *
 * @param {import("comfyui").Node} node
 */
export function addTrainingView(node) {
  /** @type {View} */
  const view = {
    get open() {
      return node.properties[OPEN] !== false;
    },
    set open(open) {
      node.properties[OPEN] = open;
    },
    get smoothing() {
      const smoothing = node.properties[SMOOTHING];
      return smoothing === "none" || smoothing === "some" ? smoothing : "much";
    },
    set smoothing(smoothing) {
      node.properties[SMOOTHING] = smoothing;
    },
    get logarithmic() {
      return node.properties[LOGARITHMIC] === true;
    },
    set logarithmic(logarithmic) {
      node.properties[LOGARITHMIC] = logarithmic;
    },
  };
  const grow = () => growNode(node, panel.element, panel.height, GROWN);
  const panel = new TrainingPanel(view, grow);
  addFoldingWidget(node, panel, { name: "training", kind: "training", fills: true });

  const show = (/** @type {string} */ place) => {
    if (nodeAt(place) === node) panel.show(trainingOf(place));
  };
  const find = async () => {
    const places = placesOf(node);
    places.forEach(show);
    await Promise.all(places.map(ask));
    if (panel.height === HEAD_HEIGHT && node.properties[GROWN]) grow(); // stored with a curve
  };
  const unwatch = watchTrainings(show);
  // Loaded, pasted, undone: only a moment later the node has its number and its graph.
  node.onConfigure = followedBy(node.onConfigure, () => setTimeout(find));
  node.onExecuted = followedBy(node.onExecuted, (output) => {
    const [place] = placesOf(node);
    if (place) takeOutput(place, output);
  });
  node.onRemoved = followedBy(node.onRemoved, () => {
    unwatch();
    panel.close();
  });
}

/** The view of its own; it belongs to no node. */
class TrainingPanel {
  #view;
  #onHeight;
  #undo;
  #height = HEAD_HEIGHT;
  /** @type {Training | undefined} */
  #run;
  /** What the foot was made of. */
  #footing = "";
  /** @type {Map<Sample, HTMLElement>} */
  #pictures = new Map();
  #curve = new TrainingCurve();
  #facts = element("span", { class: "anyadapter-training-facts" });
  #logarithmic = element(
    "button",
    {
      type: "button",
      title: t("training_logarithmic", "Logarithmic scale"),
      "aria-label": t("training_logarithmic", "Logarithmic scale"),
      onclick: () => this.#look((view) => (view.logarithmic = !view.logarithmic)),
    },
    t("training_log", "log"),
  );
  #smoothing = element(
    "select",
    {
      title: t("training_smoothing", "Smoothing of the curve"),
      "aria-label": t("training_smoothing", "Smoothing of the curve"),
      onchange: () =>
        this.#look((view) => (view.smoothing = /** @type {Smoothing} */ (this.#smoothing.value))),
    },
    element("option", { value: "none" }, t("training_smooth_none", "raw")),
    element("option", { value: "some" }, t("training_smooth_some", "smooth")),
    element("option", { value: "much" }, t("training_smooth_much", "smoother")),
  );
  #samples = element("div", {
    class: "anyadapter-training-samples",
    role: "group",
    "aria-label": t("training_samples", "Pictures made on the way"),
    onwheel: (/** @type {WheelEvent} */ event) => this.#onWheel(event),
  });
  #foot = element("div", { class: "anyadapter-training-foot" });
  #body = element(
    "div",
    { class: "anyadapter-training-body", hidden: true },
    element(
      "div",
      { class: "anyadapter-training-line" },
      this.#facts,
      this.#logarithmic,
      this.#smoothing,
    ),
    this.#curve.element,
    this.#samples,
    this.#foot,
  );
  #frame = foldingFrame(
    {
      kind: "training",
      title: t("training_title", "Training"),
      label: t("training_title", "Training"),
      onFold: () => this.#look((view) => (view.open = !view.open)),
      onWheel: zoomCanvas,
    },
    this.#body,
  );
  element = this.#frame.element;

  /**
   * @param {View} view
   * @param {() => void} onHeight Called when the panel needs another height.
   */
  constructor(view, onHeight) {
    loadStyle("training_view.css");
    this.#view = view;
    this.#onHeight = onHeight;
    this.#undo = new UndoStep(this.element, () => {});
    this.show(undefined);
  }

  /** How high the panel is to be at least, in pixels of the canvas. */
  get height() {
    return this.#height;
  }

  /**
   * Shows a training; the words for none where there is none.
   *
   * @param {Training | undefined} run
   */
  show(run) {
    this.#run = run;
    const open = run !== undefined && this.#view.open;
    const height = HEAD_HEIGHT + (open ? bodyHeight(run) : 0);
    if (height !== this.#height) {
      this.#height = height;
      this.element.classList.remove(EXPANDS); // else what it took would count as the node's own
      this.#onHeight();
    }
    this.element.classList.toggle(EXPANDS, open);
    this.#frame.fold.disabled = !run;
    this.#frame.fold.ariaExpanded = String(open);
    this.#body.hidden = !open;
    this.#frame.summary.textContent = run ? summary(run) : t("training_none", "has not run yet");
    this.#frame.summary.title = run?.finished ?? "";
    if (open) this.#paint(run);
  }

  /** Ends what goes on; to be called when the panel is removed. */
  close() {
    this.#undo.close();
    this.#curve.close();
  }

  /**
   * Changes how the training is looked at, as one step of undo.
   *
   * @param {(view: View) => void} change
   */
  #look(change) {
    this.#undo.begin();
    change(this.#view);
    this.show(this.#run);
    this.#undo.end();
  }

  /** @param {Training} run */
  #paint(run) {
    const { smoothing, logarithmic } = this.#view;
    const { points, validation, total } = run;
    const span = SPANS[smoothing] * total;
    const means = smoothed(points, span);
    this.#smoothing.value = smoothing;
    this.#logarithmic.ariaPressed = String(logarithmic);
    this.#facts.textContent = run.phase || facts(run, means);
    this.#facts.title = this.#facts.textContent;
    this.#curve.show({ points, validation, means, smooth: span > 0, logarithmic });
    this.#paintSamples(run.samples);
    this.#paintFoot(run);
  }

  /** @param {Sample[]} samples */
  #paintSamples(samples) {
    this.#samples.hidden = samples.length === 0;
    for (const [sample, picture] of this.#pictures) {
      if (samples.includes(sample)) continue;
      picture.remove();
      this.#pictures.delete(sample);
    }
    for (const sample of samples) {
      if (this.#pictures.has(sample)) continue;
      const picture = thumbnail(sample);
      this.#pictures.set(sample, picture);
      this.#samples.append(picture);
      this.#samples.scrollLeft = this.#samples.scrollWidth;
    }
  }

  /** @param {Training} run */
  #paintFoot(run) {
    this.#foot.hidden = !hasFoot(run);
    const footing = `${run.run} ${run.running} ${run.stopping} ${run.saved}`;
    if (footing === this.#footing) return;
    this.#footing = footing;
    this.#foot.replaceChildren(...(run.running ? this.#stop(run) : saved(run.saved)));
  }

  /**
   * Returns the button that ends a training, and what else does.
   *
   * @param {Training} run
   */
  #stop(run) {
    const hint = element(
      "span",
      { class: "anyadapter-training-hint", role: "status" },
      t("training_cancel_hint", "Cancel saves it too, and ends the graph"),
    );
    hint.title = hint.textContent;
    const button = element(
      "button",
      {
        type: "button",
        class: "anyadapter-training-stop",
        disabled: run.stopping,
        title: t(
          "training_stop_hint",
          "Finishes the step, saves what is trained so far, and goes on with the rest of the graph",
        ),
        onclick: async () => {
          button.disabled = true;
          try {
            await stopTraining(run.node, run.run);
          } catch (error) {
            button.disabled = false;
            hint.textContent = sentence(error);
            hint.title = hint.textContent;
            hint.classList.add("anyadapter-training-wrong");
          }
        },
      },
      run.stopping ? t("training_stopping", "Stopping …") : t("training_stop", "Stop and keep"),
    );
    return [button, hint];
  }

  /** @param {WheelEvent} event */
  #onWheel(event) {
    const { scrollWidth, clientWidth } = this.#samples;
    if (scrollWidth <= clientWidth) return;
    event.preventDefault();
    event.stopPropagation();
    this.#samples.scrollLeft += event.deltaX + event.deltaY;
  }
}

/** @param {Training} run */
function bodyHeight(run) {
  const { curve, samples, foot } = HEIGHTS;
  return curve + (run.samples.length ? samples : 0) + (hasFoot(run) ? foot : 0);
}

/** @param {Training} run */
function hasFoot(run) {
  return run.running || run.saved !== "";
}

/**
 * Says in a few words how far a training is.
 *
 * @param {Training} run
 */
function summary(run) {
  const { step, total, running, phase, seconds_per_step: pace } = run;
  if (!running)
    return (
      run.finished || t("training_ended", "ended after {step} of {total} steps", { step, total })
    );
  if (!step) return phase || t("training_starting", "starting …");
  const done = t("training_progress", "step {step}/{total}", { step, total });
  return pace ? `${done} · ${timeLeft(pace * (total - step))}` : done;
}

/**
 * Says how a training fares.
 *
 * @param {Training} run
 * @param {(number | null)[]} means Of its losses.
 */
function facts(run, means) {
  const loss = means.findLast((mean) => mean !== null);
  if (loss === undefined) return "";
  const { seconds_per_step: pace, rate } = run;
  const words = [t("training_loss", "loss {loss}", { loss: inFigures(loss) })];
  if (run.running && pace) words.push(speed(pace));
  words.push(t("training_rate", "rate {rate}", { rate: inFigures(rate) }));
  return words.join(" · ");
}

/** @param {number} pace Seconds for a step. */
function speed(pace) {
  return pace < 1
    ? t("training_per_second", "{count} it/s", { count: Number((1 / pace).toPrecision(2)) })
    : t("training_per_step", "{count} s/it", { count: Number(pace.toPrecision(2)) });
}

/** @param {number} seconds */
function timeLeft(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 60)
    return t("training_seconds_left", "{count} s left", { count: Math.round(seconds) });
  if (minutes < 60) return t("training_minutes_left", "{count} min left", { count: minutes });
  const values = { hours: Math.floor(minutes / 60), minutes: minutes % 60 };
  return t("training_hours_left", "{hours} h {minutes} min left", values);
}

/**
 * Returns the name of the file, for copying.
 *
 * @param {string} name
 */
function saved(name) {
  const button = element(
    "button",
    {
      type: "button",
      class: "anyadapter-training-saved",
      title: t("training_copy", "Copy the name: {name}", { name }),
    },
    icon("copy"),
    element("span", {}, name),
  );
  return [
    element("span", { class: "anyadapter-training-hint" }, t("training_saved", "Saved as")),
    copiesOnClick(button, name),
  ];
}

/** @param {Sample} sample */
function thumbnail(sample) {
  const { step, label, image } = sample;
  const title = t("training_sample", "Step {step}", { step });
  return element(
    "button",
    {
      type: "button",
      class: "anyadapter-training-sample",
      title: label ? `${title}: ${label}` : title,
      onclick: () =>
        openDialog({
          title,
          className: "anyadapter-training-enlarged",
          content: [element("img", { src: image, alt: label }), element("p", {}, label)],
        }),
    },
    element("img", { src: image, alt: label || title, draggable: "false" }),
    element("span", {}, String(step)),
  );
}
