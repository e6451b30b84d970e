/** Results on the node that made them: a few lines, kept in the workflow. */

import { fill, h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";
import { section } from "./panel.mjs";
import { loadWords, t } from "./text.mjs";
import { bytes, decibels } from "./format.mjs";

const KEY = "roundsmith";
function show(node, result) {
  const facts = result.facts ?? {};
  fill(
    section(node, "results"),
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
