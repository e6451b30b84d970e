/** Asks before a run that will take long, and says what takes it. */

import { frontend } from "./frontend.mjs";

const ID = "Roundsmith.ConfirmMinutes";
const SLOW = /^Roundsmith(Quantize(Model|CLIP|File)|CalibrateSampler|CompareModels)$/;

export const longRuns = {
  settings: [
    {
      id: ID,
      name: "ConfirmMinutes",
      tooltip: "ConfirmMinutes",
      category: ["Roundsmith", "RoundsmithRun", "ConfirmMinutes"],
      type: "number",
      defaultValue: 10,
      attrs: { min: 0, max: 10000, step: 1 },
    },
  ],

  setup() {
    frontend.beforeRun(async (nodes) => {
      const minutes = Number(frontend.setting(ID));
      const slow = frontend.nodes().some((node) => SLOW.test(frontend.kind(node)));
      if (!slow || !(minutes > 0)) {
        return true;
      }
      const { allowed } = await import("./estimating.mjs");
      return allowed(minutes, nodes);
    });
  },
};
