/** The layer picker's button and menu entry; the picker is loaded when it is wanted. */

import { frontend } from "./frontend.mjs";
import { t } from "./text.mjs";

const KINDS = ["RoundsmithQuantizationRecipe", "RoundsmithLayerRule"];
const picks = (node) => KINDS.includes(frontend.kind(node));

async function open(node) {
  try {
    const { pick } = await import("./picker.mjs");
    await pick(node);
  } catch (error) {
    frontend.toast("error", t("pickLayers"), error.message);
  }
}

export const picking = {
  nodeCreated(node) {
    if (picks(node)) {
      frontend.addButton(node, "roundsmith_pick", t("pickLayers"), () => open(node));
      (window.requestIdleCallback ?? setTimeout)(() => import("./picker.mjs"));
    }
  },

  getNodeMenuItems: (node) =>
    picks(node) ? [null, { content: t("pickLayers"), callback: () => open(node) }] : [],
};
