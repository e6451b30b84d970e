/** Model files dropped on nodes; what is done with them is loaded when the first one falls. */

import { frontend } from "./frontend.mjs";
import { slots } from "./loaders.mjs";

const isModel = (file) => /\.(safetensors|sft)$/i.test(file.name);

export const drop = {
  setup() {
    frontend.onUnknownFile((file, position) => {
      if (!isModel(file)) {
        return false;
      }
      import("./dropping.mjs").then(({ dropOnCanvas }) => dropOnCanvas(file, position));
      return true;
    });
  },

  nodeCreated(node) {
    if (slots(node).length) {
      frontend.onDrop(node, isModel, async (files, widget) => {
        const { dropOnNode } = await import("./dropping.mjs");
        await dropOnNode(node, files, widget);
      });
    }
  },
};
