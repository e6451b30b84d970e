/** Fit to Budget's curve on its node, kept in the workflow; a click on a point makes it the target. */

import { fill, h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";

const KIND = "RoundsmithFitToBudget";
const KEY = "roundsmith_curve";
const panels = new WeakMap();

async function show(node) {
  const { curve, NODE_WIDTH, PANEL_HEIGHT } = await import("./curve.mjs");
  if (!panels.has(node)) {
    panels.set(node, h("div", { class: "roundsmith-panel roundsmith-curve" }));
    frontend.addPanel(node, panels.get(node), () => PANEL_HEIGHT, KEY);
  }
  fill(panels.get(node), curve(node, node.properties[KEY]));
  frontend.widen(node, NODE_WIDTH);
}

export const budget = {
  nodeCreated(node) {
    if (frontend.kind(node) === KIND) {
      frontend.onExecuted(node, (output) => {
        if (output?.[KEY]?.[0]) {
          node.properties[KEY] = output[KEY][0];
          show(node);
          frontend.changed();
        }
      });
    }
  },

  loadedGraphNode(node) {
    if (frontend.kind(node) === KIND && node.properties?.[KEY]) {
      show(node);
    }
  },
};
