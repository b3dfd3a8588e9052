// Tells the page about the pack; the only module with a side effect.

import { app } from "../../scripts/app.js";
import { loadWords } from "./i18n.js";
import { addSchedulePlot } from "./schedule_plot.js";

app.registerExtension({
  name: "anyadapter",
  init: loadWords,
  nodeCreated(node) {
    if (node.comfyClass === "AnyAdapterSchedule") addSchedulePlot(node);
  },
});
