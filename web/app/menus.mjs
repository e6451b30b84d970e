/** What a right-click on a loader offers; how it is done is loaded when it is chosen. */

import { frontend } from "./frontend.mjs";
import { loader, sources } from "./loaders.mjs";
import { t } from "./text.mjs";

const work = (name, ...args) => async () => {
  const actions = await import("./inserting.mjs");
  await actions[name](...args);
};

export const menus = {
  getNodeMenuItems(node) {
    if (!loader(node)) {
      return [];
    }
    const items = [];
    if (frontend.output(node, "MODEL") >= 0) {
      items.push([t("menuQuantizeModel"), work("quantizeModel", node)]);
    }
    if (frontend.output(node, "CLIP") >= 0) {
      items.push([t("menuQuantizeClip"), work("quantizeClip", node)]);
    }
    if (sources(node).length) {
      items.push([t("menuInspect"), work("inspect", node)]);
    }
    if (frontend.output(node, "MODEL") >= 0) {
      items.push([t("menuCalibrate"), work("calibrate", node)]);
    }
    return [null, ...items.map(([content, callback]) => ({ content, callback }))];
  },
};
