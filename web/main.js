// Tells the page about the pack; the only module with a side effect.

import { app } from "../../scripts/app.js";
import { adapterMenuItems, addAdapterBrowser } from "./adapter_browse.js";
import { forgetAdapterNames } from "./adapter_names.js";
import { forgetBlocks } from "./block_editor.js";
import { addBlockEditor } from "./block_widget.js";
import { loadWords, translateDefinition, translateNode } from "./i18n.js";
import { addSchedulePlot } from "./schedule_plot.js";
import { stackWidget } from "./stack_editor.js";
import { listenForTrainings, takeOutputs } from "./training_runs.js";
import { addTrainingView } from "./training_view.js";

app.registerExtension({
  name: "anyadapter",
  init: loadWords,
  beforeRegisterNodeDef(_, definition) {
    if (definition.name.startsWith("AnyAdapter")) translateDefinition(definition);
  },
  setup: listenForTrainings,
  getCustomWidgets: () => ({ ANYADAPTER_STACK: stackWidget }),
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("AnyAdapter")) translateNode(node);
    if (node.comfyClass === "AnyAdapterSchedule") addSchedulePlot(node);
    if (node.comfyClass === "AnyAdapterLoad") addAdapterBrowser(node);
    if (node.comfyClass === "AnyAdapterLoad") addBlockEditor(node);
    if (node.comfyClass === "AnyAdapterTrain") addTrainingView(node);
  },
  onNodeOutputsUpdated: takeOutputs,
  getNodeMenuItems(node) {
    return node.comfyClass === "AnyAdapterLoad" ? adapterMenuItems(node) : [];
  },
  refreshComboInNodes() {
    forgetAdapterNames();
    forgetBlocks();
  },
});
