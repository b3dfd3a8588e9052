// The trainings that the page knows of: what the server tells as they go on, and where they belong.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { training } from "./api.js";

/** @import { Graph, Node } from "comfyui" */
/** @import { Training, TrainingNews } from "./api.js" */

/** Beyond it the server is asked for fewer points. */
const MOST_POINTS = 2000;
const MOST_SAMPLES = 24;
const OUTPUT = "anyadapter_training";

/** @type {Map<string, Training>} By node, as the server numbers them. */
const runs = new Map();
/** @type {Set<(node: string) => void>} */
const watchers = new Set();
/** @type {Map<string, boolean>} Nodes the server was asked about, and whether to ask once more. */
const asked = new Map();

/** Takes what the server sends from now on. */
export function listenForTrainings() {
  api.addEventListener("anyadapter.training", ({ detail }) => take(detail));
  api.addEventListener("reconnected", () => {
    for (const [node, run] of runs) if (run.running) ask(node);
  });
}

/**
 * Calls a function with the node of every training that has changed, and returns one that ends this.
 *
 * @param {(node: string) => void} watcher
 */
export function watchTrainings(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

/**
 * Returns what is known of the newest training of a node.
 *
 * @param {string} node
 */
export function trainingOf(node) {
  return runs.get(node);
}

/**
 * Asks the server for all about the newest training of a node.
 *
 * @param {string} node
 */
export async function ask(node) {
  if (asked.has(node)) {
    asked.set(node, true);
    return;
  }
  try {
    do {
      asked.set(node, false);
      const before = runs.get(node);
      const run = await training(node);
      const known = runs.get(node);
      // News may have overtaken the answer.
      const isNew = run && run.run === known?.run ? run.message > known.message : known === before;
      if (run && isNew) keep(node, run);
      else if (!run && isNew && known?.running) {
        keep(node, { ...known, running: false }); // the server was started anew
      }
    } while (asked.get(node));
  } catch {
    // No server: when it is back it is asked again.
  } finally {
    asked.delete(node);
  }
}

/**
 * Takes what a node gave as its output, now or when it ran before, unless more is known.
 *
 * @param {string} node
 * @param {Record<string, any> | undefined} output
 */
export function takeOutput(node, output) {
  const [run] = output?.[OUTPUT] ?? [];
  const known = runs.get(node);
  if (run && run.run !== known?.run && !known?.running) keep(node, run);
}

/**
 * Takes the outputs of a workflow that was opened with them.
 *
 * @param {Record<string, Record<string, any>>} outputs By the path of their node.
 */
export function takeOutputs(outputs) {
  for (const [path, output] of Object.entries(outputs)) {
    const [place] = output?.[OUTPUT] ? placesOf(nodeAt(path)) : [];
    if (place) takeOutput(place, output);
  }
}

/**
 * Returns the node at a path such as `5:3`, or one that begins with the id of a subgraph.
 *
 * @param {string} path
 */
export function nodeAt(path) {
  const ids = path.split(":");
  const last = ids.pop() ?? "";
  /** @type {Graph | undefined} */
  let graph = app.rootGraph;
  for (const id of ids) {
    graph = graph?.getNodeById(id)?.subgraph ?? app.rootGraph.subgraphs?.get(id);
  }
  return graph?.getNodeById(last) ?? undefined;
}

/**
 * Returns the paths at which a node runs: several where its subgraph is used several times.
 *
 * @param {Node | undefined} node
 * @param {Graph} [graph]
 * @param {string} [before]
 * @returns {string[]}
 */
export function placesOf(node, graph = app.rootGraph, before = "") {
  return graph.nodes.flatMap((one) => {
    if (one === node) return [before + one.id];
    return one.subgraph ? placesOf(node, one.subgraph, `${before}${one.id}:`) : [];
  });
}

/** @param {TrainingNews} news */
function take(news) {
  const { node, sample, ...now } = news;
  const known = runs.get(node);
  const follows = known?.run === now.run ? now.message - known.message : 0;
  if (now.message === 1) {
    keep(node, { node, ...now, samples: [] });
  } else if (known && follows === 1 && known.points.length < MOST_POINTS) {
    keep(node, {
      node,
      ...now,
      points: [...known.points, ...now.points],
      validation: [...known.validation, ...now.validation],
      samples: sample ? [...known.samples, sample].slice(-MOST_SAMPLES) : known.samples,
    });
  } else if (known?.run !== now.run || follows > 0) {
    ask(node); // some were missed, or it grows too long
  }
}

/**
 * @param {string} node
 * @param {Training} run
 */
function keep(node, run) {
  runs.set(node, run);
  for (const watcher of watchers) watcher(node);
}
