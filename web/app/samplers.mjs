/** The sampler that a model goes to, and how it is set. */

import { frontend } from "./frontend.mjs";

const SAMPLERS = ["KSampler", "KSamplerAdvanced", "SamplerCustom"];
const GUIDERS = ["BasicGuider", "CFGGuider"];

/**
 * The first sampler downstream of a loader: `{sampler, node, input}`, where `node` is what takes
 * the model: the sampler itself, or its guider. Undefined where there is none.
 */
export function samplerOf(loader) {
  const seen = new Set([loader]);
  const waiting = [[loader, frontend.output(loader, "MODEL")]];
  while (waiting.length) {
    const [from, output] = waiting.shift();
    for (const { node, input } of frontend.consumers(from, output)) {
      if (!node || seen.has(node)) {
        continue;
      }
      seen.add(node);
      const kind = frontend.kind(node);
      if (SAMPLERS.includes(kind)) {
        return { sampler: node, node, input };
      }
      if (GUIDERS.includes(kind)) {
        const [consumer] = frontend.consumers(node, 0);
        if (frontend.kind(consumer?.node) === "SamplerCustomAdvanced") {
          return { sampler: consumer.node, node, input };
        }
      }
      const next = frontend.output(node, "MODEL");
      if (next >= 0) {
        waiting.push([node, next]);
      }
    }
  }
  return undefined;
}

/** A sampler's links by what they are, and its values by the names our nodes have for them. */
export function describe({ sampler, node }) {
  const value = (of, ...names) =>
    names.map((name) => of && frontend.widget(of, name)?.value).find((v) => v !== undefined);
  const behind = (name) => frontend.source(sampler, name)?.node;
  const noise = behind("noise");
  const sigmas = behind("sigmas");
  const chosen = behind("sampler");
  const values = {
    seed: Number(value(noise ?? sampler, "noise_seed", "seed") ?? 0),
    steps: value(sigmas ?? sampler, "steps"),
    cfg: value(node, "cfg") ?? value(sampler, "cfg") ?? 1,
    sampler_name: value(chosen ?? sampler, "sampler_name"),
    scheduler: value(sigmas ?? sampler, "scheduler"),
    denoise: value(sigmas ?? sampler, "denoise"),
  };
  return {
    model: frontend.source(node, "model"),
    positive: frontend.source(node, "positive") ?? frontend.source(node, "conditioning"),
    negative: frontend.source(node, "negative"),
    latent: frontend.source(sampler, "latent_image"),
    values: Object.fromEntries(Object.entries(values).filter(([, v]) => v !== undefined)),
  };
}

/** Where the VAE comes from that decodes a sampler's latent; else the loader's own, if it has one. */
export function vaeOf(sampler, loader) {
  for (let output = 0; output < frontend.outputs(sampler); output += 1) {
    for (const { node } of frontend.consumers(sampler, output)) {
      const found = node && frontend.source(node, "vae");
      if (found) {
        return found;
      }
    }
  }
  const own = frontend.output(loader, "VAE");
  return own >= 0 ? { node: loader, output: own } : undefined;
}
