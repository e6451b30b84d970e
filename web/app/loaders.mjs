/** Which widgets of which nodes name a model file, and in which of ComfyUI's folders. */

import { frontend } from "./frontend.mjs";

const DIFFUSION = { unet_name: "diffusion_models" };
const CHECKPOINT = { ckpt_name: "checkpoints" };
const encoders = (names) => Object.fromEntries(names.map((name) => [name, "text_encoders"]));
const numbered = (count, prefix = "") =>
  encoders(Array.from({ length: count }, (_, i) => `${prefix}clip_name${i + 1}`));

const LOADERS = {
  UNETLoader: { files: DIFFUSION, ours: "RoundsmithLoadDiffusionModel" },
  CheckpointLoaderSimple: { files: CHECKPOINT, ours: "RoundsmithLoadCheckpoint" },
  CheckpointLoader: { files: CHECKPOINT, ours: "RoundsmithLoadCheckpoint" },
  unCLIPCheckpointLoader: { files: CHECKPOINT, ours: "RoundsmithLoadCheckpoint" },
  ImageOnlyCheckpointLoader: { files: CHECKPOINT, ours: "RoundsmithLoadCheckpoint" },
  CLIPLoader: { files: encoders(["clip_name"]), ours: "RoundsmithLoadCLIP" },
  DualCLIPLoader: { files: numbered(2), ours: "RoundsmithLoadCLIP" },
  TripleCLIPLoader: { files: numbered(3), ours: "RoundsmithLoadCLIP" },
  QuadrupleCLIPLoader: { files: numbered(4), ours: "RoundsmithLoadCLIP" },
  RoundsmithLoadDiffusionModel: { files: DIFFUSION },
  RoundsmithLoadCheckpoint: { files: CHECKPOINT },
  RoundsmithLoadCLIP: { files: numbered(4, "files.") },
};

/** Loaders by what a file is, for one that is dropped on the bare canvas: stock, ours. */
export const LOADER_FOR = {
  diffusion_models: ["UNETLoader", "RoundsmithLoadDiffusionModel"],
  text_encoders: ["CLIPLoader", "RoundsmithLoadCLIP"],
  checkpoints: ["CheckpointLoaderSimple", "RoundsmithLoadCheckpoint"],
};

/** What is known of a loader: its `files`, and which loader is `ours` for a stock one. */
export const loader = (node) => LOADERS[frontend.kind(node)];

/** The widget of a class of loaders that names its first file. */
export const firstWidget = (kind) => Object.keys(LOADERS[kind].files)[0];

/** The widgets of a node that name a model file: `{widget, folder}`; no folder: it is in the name. */
export function slots(node) {
  const files = loader(node)?.files ?? (frontend.ours(node) ? { source: "" } : {});
  return Object.entries(files)
    .filter(([name]) => frontend.widget(node, name))
    .map(([widget, folder]) => ({ widget, folder }));
}

/** The files chosen on a node that ComfyUI has, as `<folder>/<name>`. */
export const sources = (node) =>
  slots(node)
    .map(({ widget, folder }) => [folder, frontend.widget(node, widget)])
    .filter(([, widget]) => frontend.listed(widget) && /\.(safetensors|sft)$/i.test(widget.value))
    .map(([folder, widget]) => (folder ? `${folder}/${widget.value}` : widget.value));
