/** How long a run should take, and whether the person wants it. */

import { duration } from "./format.mjs";
import { frontend } from "./frontend.mjs";
import { t } from "./text.mjs";

const agreed = new Set();

/** Whether a run may begin: it is short, was agreed to before, or the person says so now. */
export async function allowed(minutes, outputs) {
  let prompt;
  let found;
  try {
    prompt = await frontend.prompt();
    found = await frontend.ask("estimate", { prompt, outputs });
  } catch {
    return true; // no estimate is no reason not to run
  }
  const key = ({ node }) => JSON.stringify([prompt[node].class_type, prompt[node].inputs]);
  const steps = found.steps.filter((step) => !agreed.has(key(step)));
  const seconds = steps.reduce((sum, step) => sum + step.seconds, 0);
  if (seconds <= minutes * 60) {
    return true;
  }
  steps.sort((a, b) => b.seconds - a.seconds);
  const lines = steps.map((step) =>
    t(step.measured ? "longRunStep" : "longRunGuess", {
      node: frontend.nodeOf(step.node)?.title ?? step.kind,
      time: duration(step.seconds),
    }),
  );
  const message = t("longRunMessage", { time: duration(seconds) });
  if (!(await frontend.confirm(t("longRunTitle"), message, lines))) {
    return false;
  }
  steps.forEach((step) => agreed.add(key(step)));
  return true;
}
