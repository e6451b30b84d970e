/** What a running node does. */

import { h } from "./dom.mjs";
import { decibels, duration } from "./format.mjs";
import { t } from "./text.mjs";

/**
 * Lines for a message of the server (`bridge/progress.py`), with `began` and `at`, seconds of this
 * page's clock: when the node began, and when the message came.
 */
export function progress(message) {
  const done = Math.min(Math.max(Number(message.done) || 0, 0), 1);
  const now = performance.now() / 1000;
  const percent = `${Math.floor(done * 100)} %`;
  const remaining = message.remaining - (now - message.at);
  const gain = decibels(message.gain);
  return h(
    "div",
    { class: "roundsmith-progress" },
    line("roundsmith-row", t(`stage_${message.stage}`), where(message), percent),
    message.layer ? h("div", { class: "roundsmith-layer", title: message.layer }, message.layer) : null,
    h(
      "div",
      { class: "roundsmith-bar", role: "progressbar", "aria-valuenow": Math.floor(done * 100) },
      h("div", { style: `width: ${done * 100}%` }),
    ),
    line(
      "roundsmith-row roundsmith-quiet",
      t("elapsed", { time: duration(now - message.began) }),
      Number.isFinite(remaining) ? t("remaining", { time: duration(remaining) }) : "",
    ),
    gain ? h("div", { class: "roundsmith-quiet" }, t("gainSoFar", { gain: signed(gain) })) : null,
  );
}

const line = (kind, ...parts) =>
  h("div", { class: kind }, parts.filter(Boolean).map((part) => h("span", {}, part)));

const signed = (text) => (text.startsWith("-") ? text : `+${text}`);

function where(m) {
  const parts = [
    m.count && t("nOfM", { n: m.index, m: m.count }),
    m.texts && t("textOf", { n: m.text, m: m.texts }),
    m.runs > 1 && t("runOf", { n: m.run, m: m.runs }),
    m.passes > 1 && t("passOf", { n: m.nth_pass, m: m.passes }),
    m.steps && t("stepOf", { n: m.step, m: m.steps }),
  ];
  return parts.filter(Boolean).join(", ");
}
