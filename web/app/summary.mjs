/** A result in a few lines. It comes from a workflow's file: nothing of it is taken on trust. */

import { h } from "./dom.mjs";
import { bytes, decibels, duration } from "./format.mjs";
import { t } from "./text.mjs";

const number = Number.isFinite;

/**
 * The lines of a result.
 * @param {object} result as `bridge/results.py: Result.summary` makes it
 * @param {() => void} open opens its details
 */
export function summary(result, open) {
  const facts = result.facts && typeof result.facts === "object" ? result.facts : {};
  const warnings = Array.isArray(result.warnings) ? result.warnings : [];
  return h(
    "div",
    { class: "roundsmith-summary" },
    size(facts),
    quality(result.kind, facts).map((text) => h("div", {}, text)),
    lines(result.kind, facts).map((text) => h("div", { class: "roundsmith-quiet" }, text)),
    calibrated(facts.calibrated),
    warnings.length ? warned(warnings, result.hidden) : null,
    result.report
      ? h("button", { class: "roundsmith-button", type: "button", onclick: open }, t("details"))
      : null,
  );
}

function size({ bytes_before: before, bytes_after: after, file }) {
  if (!number(after)) {
    return null;
  }
  const sizes = number(before) ? `${bytes(before)} → ${bytes(after)}` : bytes(after);
  const change = number(before) && before > 0 ? Math.round((after / before - 1) * 100) : 0;
  return h(
    "div",
    {},
    file ? h("div", { class: "roundsmith-file", title: file }, String(file)) : null,
    h(
      "div",
      { class: "roundsmith-size" },
      sizes,
      change ? h("span", { class: "roundsmith-tag" }, `${change > 0 ? "+" : "−"}${Math.abs(change)} %`) : null,
    ),
  );
}

/** The SNRs, as executed first. */
function quality(kind, facts) {
  const own = {
    compare: facts.lossless === true ? t("lossless") : value("finalSnr", facts.snr),
    budget: value(facts.measured === "outputs" ? "outputsSnr" : "weightsSnr", facts.snr),
  }[kind];
  const measured = number(facts.executed_snr) || number(facts.output_snr);
  const gain = number(facts.gain) ? `${facts.gain >= 0 ? "+" : "−"}${decibels(Math.abs(facts.gain))}` : "";
  // Of exact activations: said where the SNR shown above is another.
  const exact = number(facts.executed_snr) && decibels(facts.executed_snr) !== decibels(facts.output_snr);
  return [
    own,
    number(facts.psnr) && t("psnr", { value: decibels(facts.psnr) }),
    value("executedSnr", facts.executed_snr),
    value("exactSnr", facts.output_snr),
    gain && t(gainOf(kind, facts, exact), { gain }),
    measured ? "" : value(kind === "inspect" && !facts.against ? "estimatedSnr" : "weightsSnr", facts.weight_snr),
  ].filter(Boolean);
}

const value = (key, snr) => (number(snr) ? t(key, { value: decibels(snr) }) : "");

function lines(kind, facts) {
  const loaders = kind !== "inspect" ? ""
    : facts.stock ? t("stockLoads")
      : facts.roundsmith ? t("oursLoads") : t("nothingLoads");
  return [
    number(facts.quantized) && t("counts", { quantized: facts.quantized, kept: facts.kept }),
    counted(facts.formats, kind === "inspect" ? bytes : null),
    counted(facts.methods),
    facts.model && String(facts.model),
    loaders,
    number(facts.changes) && t(facts.changes ? "changes" : "noChanges", { count: facts.changes }),
    facts.meaning && String(facts.meaning),
    counted(facts.kinds),
    kind === "change" && !facts.file && t("notWritten"),
    number(facts.corrected) && t("corrected", { count: facts.corrected, all: facts.layers }),
    kind === "calibration" && t("recorded", { layers: facts.layers, seen: facts.seen, used: facts.used }),
    kind === "calibration" && passes(facts),
    number(facts.scales) && t("scales", { count: facts.scales }),
    facts.worst?.length && t("worst", { names: facts.worst.join(", ") }),
    facts.hint && String(facts.hint),
    ...Object.entries(kind === "saved" ? facts.files ?? {} : {}).map(([name, n]) => `${name}: ${bytes(n)}`),
  ].filter(Boolean);
}

/** The words for a gain: of what, and with which activations. */
function gainOf(kind, facts, exact) {
  if (kind === "lora") {
    return facts.executed === false ? "loraGainExact" : "loraGain";
  }
  return exact ? "overNearestExact" : "overNearest";
}

/** How often everything was sampled to record it, and how much slower that was. */
function passes({ passes: count, slowdown }) {
  const often = number(count) && t(count === 1 ? "onePass" : "passes", { count });
  const slower = number(slowdown) && t("slowdown", { factor: slowdown.toFixed(1) });
  return [often, slower].filter(Boolean).join(", ");
}

/** Whether a model that nobody calibrated did so itself (`bridge/self_calibration.py: read_note`). */
function calibrated(told) {
  if (!told || typeof told !== "object") {
    return null;
  }
  if (told.why !== undefined) {
    return h("div", { class: "roundsmith-warning" }, t("notCalibrated", { why: told.why }));
  }
  const [key, count] = number(told.runs) ? ["calibratedRuns", told.runs] : ["calibratedTexts", told.texts];
  return number(count) && number(told.seconds)
    ? h("div", { class: "roundsmith-quiet" }, t(key, { count, time: duration(told.seconds) }))
    : null;
}

/** `{a: 2, b: 1}` → `2 × a, 1 × b`; with `show`, `a 2 KB, b 1 KB`. */
function counted(counts, show = null) {
  const pairs = Object.entries(counts && typeof counts === "object" ? counts : {});
  const said = pairs.slice(0, 5).map(([name, n]) => (show ? `${name} ${show(n)}` : `${n} × ${name}`));
  return [...said, ...(pairs.length > 5 ? ["…"] : [])].join(", ");
}

/** Warnings behind a line that says how many. */
export function warned(warnings, hidden = 0) {
  const more = number(hidden) && hidden > 0 ? [t("moreWarnings", { count: hidden })] : [];
  return h(
    "details",
    { class: "roundsmith-warnings" },
    h("summary", {}, t("warnings", { count: warnings.length + (more.length ? hidden : 0) })),
    h("ul", {}, [...warnings, ...more].map((text) => h("li", {}, String(text)))),
  );
}
