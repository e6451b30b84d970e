/** What a recipe is for: the model's file, the rules connected, what was measured, by the wires. */

import { frontend } from "./frontend.mjs";

const RECIPE = "RoundsmithQuantizationRecipe";
const RULE = "RoundsmithLayerRule";
const FOLDERS = [
  [/^source$/, ""],
  [/^unet_name$/, "diffusion_models/"],
  [/^ckpt_name$/, "checkpoints/"],
  [/(^|\.)clip_name\d*$/, "text_encoders/"],
];
const MODELS = ["MODEL", "CLIP", "*"];

/** All nodes that a step leads to, nearest first, the first among them. */
function reached(first, step) {
  const found = new Set([first]);
  for (const node of found) {
    step(node).forEach((next) => found.add(next));
  }
  return [...found];
}

/** The files that a node's widgets name, as `<folder>/<name>`. */
function filesOf(node) {
  return Object.entries(frontend.values(node)).flatMap(([name, value]) => {
    const folder = FOLDERS.find(([pattern]) => pattern.test(name));
    return folder && typeof value === "string" ? [folder[1] + value] : [];
  });
}

/**
 * For a Quantization Recipe or a Layer Rule:
 * `files` it is used on, nearest first; `recipe`'s widgets, or null; the widgets of the Layer
 * `rules` in the order they are asked; `at`, which of them the node is; a `report` of an earlier
 * run, or "".
 */
export function surroundings(node) {
  const after = reached(node, (n) => frontend.fed(n));
  const recipe = after.find((n) => frontend.kind(n) === RECIPE);
  const chain = reached(recipe ?? node, (n) =>
    frontend.feeding(n).filter((from) => frontend.kind(from) === RULE),
  ).filter((n) => frontend.kind(n) === RULE);
  chain.reverse();
  const models = after.flatMap((n) => reached(n, (m) => frontend.feeding(m, MODELS)));
  const near = [...new Set([...after, ...models])];
  return {
    files: [...new Set(near.flatMap(filesOf))],
    recipe: recipe ? frontend.values(recipe) : null,
    rules: chain.map((n) => frontend.values(n)),
    at: chain.indexOf(node),
    report: near.map((n) => n.properties?.roundsmith?.report).find(Boolean) ?? "",
  };
}
