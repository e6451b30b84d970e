/** Results on the node that made them: a few lines, kept in the workflow. */

import { fill, h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";
import { loadWords, t } from "./text.mjs";
import { bytes, decibels } from "./format.mjs";

const KEY = "roundsmith";
const panels = new WeakMap();

function panel(node) {
  if (!panels.has(node)) {
    panels.set(node, h("div", { class: "roundsmith-panel" }));
  }
  const element = panels.get(node);
  frontend.addPanel(node, element, () => element.scrollHeight || 64);
  return element;
}

function show(node, result) {
  const facts = result.facts ?? {};
  fill(
    panel(node),
    h("div", {}, `${bytes(facts.bytes_before)} → ${bytes(facts.bytes_after)}`),
    h("div", {}, t("layersQuantized", { count: facts.quantized })),
    h("div", {}, decibels(facts.executed_snr)),
  );
  frontend.fit(node);
}

export const results = {
  setup: loadWords,

  nodeCreated(node) {
    if (!frontend.ours(node)) {
      return;
    }
    frontend.onExecuted(node, (output) => {
      const result = output?.roundsmith?.[0];
      if (result) {
        node.properties[KEY] = result;
        show(node, result);
        frontend.changed();
      }
    });
  },

  loadedGraphNode(node) {
    if (frontend.ours(node) && node.properties?.[KEY]) {
      show(node, node.properties[KEY]);
    }
  },
};
