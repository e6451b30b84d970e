/** Fit to Budget's curve on its node, kept in the workflow; a click on a point makes it the target. */

import { fill } from "./dom.mjs";
import { frontend } from "./frontend.mjs";
import { section } from "./panel.mjs";

const KIND = "RoundsmithFitToBudget";
const KEY = "roundsmith_curve";

async function show(node) {
  const { curve, NODE_WIDTH } = await import("./curve.mjs");
  fill(section(node, "curve"), curve(node, node.properties[KEY]));
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
