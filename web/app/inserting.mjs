/** Nodes inserted and wired for the person: quantize, inspect, calibrate–quantize–compare. */

import { applyDefaults } from "./defaults.mjs";
import { frontend } from "./frontend.mjs";
import { sources } from "./loaders.mjs";
import { describe, samplerOf, vaeOf } from "./samplers.mjs";
import { t } from "./text.mjs";

const QUANTIZE = {
  MODEL: ["RoundsmithQuantizeModel", "model"],
  CLIP: ["RoundsmithQuantizeCLIP", "clip"],
};

function insert(kind, place) {
  const node = frontend.insert(kind, place);
  applyDefaults(node);
  return node;
}

function quantize(loader, type) {
  const [kind, input] = QUANTIZE[type];
  return frontend.change(() => {
    const output = frontend.output(loader, type);
    const consumers = frontend.consumers(loader, output);
    const node = insert(kind, { beside: loader });
    frontend.connect(loader, output, node, input);
    for (const consumer of consumers) {
      frontend.reconnect(node, 0, consumer);
    }
    frontend.select([node]);
  });
}

/** A Quantize Model node between a loader and what it feeds. */
export const quantizeModel = (loader) => quantize(loader, "MODEL");

/** A Quantize CLIP node between a loader and what it feeds. */
export const quantizeClip = (loader) => quantize(loader, "CLIP");

/** An Inspect node for each file of a loader. */
export function inspect(loader) {
  return frontend.change(() => {
    const nodes = sources(loader).map((source) => {
      const node = insert("RoundsmithInspectFile", { beside: loader, below: true });
      frontend.setWidget(node, "source", source);
      return node;
    });
    frontend.select(nodes);
  });
}

/** The chain that calibrates, quantizes and compares a model as its sampler runs it. */
export async function calibrate(loader) {
  const found = samplerOf(loader);
  const settings = found && describe(found);
  if (!settings?.positive || !settings.latent) {
    frontend.toast("warn", t("noSamplerTitle"), t("noSampler"), 12000);
    return;
  }
  await frontend.change(() => {
    const [left, top] = frontend.below(loader);
    const calibrator = insert("RoundsmithCalibrateSampler", { at: [left, top] });
    const quantizer = insert("RoundsmithQuantizeModel", { beside: calibrator });
    const comparer = insert("RoundsmithCompareModels", { beside: quantizer });
    for (const node of [calibrator, comparer]) {
      frontend.link(settings.positive, node, "positive");
      frontend.link(settings.negative ?? settings.positive, node, "negative");
      frontend.link(settings.latent, node, "latent_image");
      for (const [name, value] of Object.entries(settings.values)) {
        frontend.setWidget(node, name, value);
      }
    }
    frontend.setWidget(calibrator, "seed", settings.values.seed + 1); // not the one compared
    frontend.link(settings.model, calibrator, "model");
    frontend.link(settings.model, quantizer, "model");
    frontend.link(settings.model, comparer, "reference");
    frontend.connect(calibrator, 0, quantizer, "calibration");
    frontend.connect(quantizer, 0, comparer, "quantized");
    frontend.connect(quantizer, 0, found.node, found.input);
    const vae = vaeOf(found.sampler, loader);
    if (vae) {
      frontend.link(vae, comparer, "vae");
    }
    frontend.select([calibrator, quantizer, comparer]);
  });
  frontend.showSelected();
}
