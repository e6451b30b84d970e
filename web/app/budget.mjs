/** Fit to Budget's curve on its node, kept in the workflow; a click on a point makes it the target. */

import { fill, h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";

const KIND = "RoundsmithFitToBudget";
const KEY = "roundsmith_curve";
const inners = new WeakMap();

async function show(node) {
  const { curve, NODE_WIDTH } = await import("./curve.mjs");
  if (!inners.has(node)) {
    const inner = h("div");
    inners.set(node, inner);
    // Space around the content belongs to the panel: 2 × (6 + 1) px.
    const height = () => (inner.offsetHeight || 250) + 14;
    frontend.addPanel(node, h("div", { class: "roundsmith-panel roundsmith-curve" }, inner), height, KEY);
    new ResizeObserver(() => frontend.fit(node)).observe(inner);
  }
  fill(inners.get(node), curve(node, node.properties[KEY]));
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
