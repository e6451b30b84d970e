/** Settings for what a new node starts with. Nodes that are loaded keep what they have. */

import { frontend } from "./frontend.mjs";

const QUANTIZE = ["RoundsmithQuantizeModel", "RoundsmithQuantizeCLIP", "RoundsmithQuantizeFile"];
const ID = {
  format: "Roundsmith.DefaultFormat",
  rounding: "Roundsmith.DefaultRounding",
  folder: "Roundsmith.OutputFolder",
  pattern: "Roundsmith.NamePattern",
};
const CATEGORY = { format: "Quantize", rounding: "Quantize", folder: "Files", pattern: "Files" };

function setting(what, order) {
  const choices = what === "pattern" ? null : frontend.choices("RoundsmithQuantizeFile", what);
  const name = ID[what].split(".")[1];
  return {
    id: ID[what],
    name, // its words are in locales, settings.json
    tooltip: name,
    category: ["Roundsmith", `Roundsmith${CATEGORY[what]}`, name],
    sortOrder: 10 - order,
    type: choices ? "combo" : "text",
    ...(choices ? { options: choices } : {}),
    defaultValue: choices ? choices[0] : "",
  };
}

function set(node, name, value) {
  const widget = frontend.widget(node, name);
  if (widget && value && widget.value !== value) {
    frontend.setWidget(node, name, value);
  }
}

/** Gives a node that is new the values of the settings. */
export function applyDefaults(node) {
  const kind = frontend.kind(node);
  const pattern = String(frontend.setting(ID.pattern) ?? "").trim();
  if (QUANTIZE.includes(kind)) {
    set(node, "format", frontend.setting(ID.format));
    set(node, "rounding", frontend.setting(ID.rounding));
  }
  if (frontend.widget(node, "filename") && frontend.widget(node, "folder")) {
    set(node, "folder", frontend.setting(ID.folder));
    set(node, "filename", pattern);
  }
  const prefix = frontend.widget(node, "filename_prefix")?.value;
  if (pattern && typeof prefix === "string" && kind !== "RoundsmithSaveCalibration") {
    set(node, "filename_prefix", prefix.replace(/[^/]*$/, "") + pattern);
  }
}

export const defaults = {
  setup() {
    Object.keys(ID).forEach((what, index) => frontend.addSetting(setting(what, index)));
  },

  nodeCreated(node) {
    if (frontend.ours(node)) {
      frontend.whenNew(node, applyDefaults);
    }
  },
};
