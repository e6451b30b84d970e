/** Bytes and SNR by block, as bars; a click shows a block's layers alone. */

import { blockOf } from "./columns.mjs";
import { h } from "./dom.mjs";
import { bytes, decibels } from "./format.mjs";
import { t } from "./text.mjs";

const SNRS = ["executed_snr", "output_snr", "snr", "weight_snr"];

/** Totals of each block, in the model's order: `{block, layers, before, after, snr}`. */
export function totals(rows) {
  const found = new Map();
  const key = SNRS.find((name) => rows.some((row) => Number.isFinite(row[name])));
  for (const row of rows) {
    const block = blockOf(row.name);
    const sum = found.get(block) ?? { block, layers: 0, before: 0, after: 0, snrs: [] };
    sum.layers += 1;
    sum.before += row.bytes_before || 0;
    sum.after += row.bytes_after || 0;
    if (key && Number.isFinite(row[key])) {
      sum.snrs.push(row[key]);
    }
    found.set(block, sum);
  }
  return [...found.values()].map(({ snrs, ...sum }) => ({
    ...sum,
    snr: snrs.length ? snrs.reduce((a, b) => a + b) / snrs.length : null,
  }));
}

/**
 * The bars, or null where there is nothing to draw.
 * @param {(block: string | null) => void} choose called with the block clicked, null: all again
 */
export function blocks(rows, choose) {
  const sums = totals(rows);
  const most = Math.max(...sums.map((sum) => Math.max(sum.before, sum.after)));
  const best = Math.max(...sums.map((sum) => sum.snr ?? 0));
  if (sums.length < 2 || (!most && !best)) {
    return null;
  }
  let chosen = null;
  const bars = sums.map((sum) => {
    const name = sum.block || t("outsideBlocks");
    const words = [
      name,
      t("layerCount", { count: sum.layers }),
      most ? [sum.before, sum.after].filter(Boolean).map(bytes).join(" → ") : "",
      decibels(sum.snr),
    ];
    const bar = h(
      "button",
      { type: "button", class: "roundsmith-block", title: words.filter(Boolean).join("\n"), "aria-pressed": "false" },
      most ? stack("bytes", [["was", sum.before / most], ["is", sum.after / most]]) : null,
      best ? stack("snr", [["is", (sum.snr ?? 0) / best]]) : null,
    );
    bar.setAttribute("aria-label", words.filter(Boolean).join(", "));
    bar.addEventListener("click", () => {
      chosen = chosen === sum.block ? null : sum.block;
      bars.forEach((other, i) => other.setAttribute("aria-pressed", String(sums[i].block === chosen)));
      choose(chosen);
    });
    return bar;
  });
  const legend = h(
    "div",
    { class: "legend" },
    most ? h("span", { class: "bytes" }, t("bytesByBlock", { most: bytes(most) })) : null,
    best ? h("span", { class: "snr" }, t("snrByBlock", { best: decibels(best) })) : null,
  );
  return h("div", { class: "chart" }, legend, h("div", { class: "roundsmith-blocks" }, bars));
}

const stack = (kind, parts) =>
  h(
    "div",
    { class: `stack ${kind}` },
    parts.map(([name, share]) => h("div", { class: name, style: `height: ${(share * 100).toFixed(1)}%` })),
  );
