/** What a node does and made, on the node: progress while it runs, then a summary that is kept. */

import { fill, h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";
import { section } from "./panel.mjs";
import { progress } from "./progress.mjs";
import { summary } from "./summary.mjs";
import { loadWords, t } from "./text.mjs";

const KEY = "roundsmith";
const TICK = 500; // ms between looks at the clock while a node runs
const SETTLED = 1000; // ms after which the frontend has put a node's pictures below its widgets
const states = new Map(); // by node, while it has something to show

function state(node) {
  if (!states.has(node)) {
    states.set(node, { inner: section(node, "results") });
    frontend.onRemoved(node, () => states.delete(node));
  }
  return states.get(node);
}

function draw(node) {
  const { inner, running, error, cancelled } = state(node);
  if (running) {
    fill(inner, progress(running));
    return;
  }
  const result = node.properties?.[KEY];
  const shown = result && typeof result === "object" ? summary(result, () => open(node)) : null;
  fill(
    inner,
    error ? h("div", { class: "roundsmith-error", role: "alert" }, error) : null,
    cancelled ? h("div", { class: "roundsmith-cancelled" }, t("cancelled")) : null,
    shown,
  );
}

async function open(node) {
  try {
    const { details } = await import("./details.mjs");
    await details(node.title, node.properties[KEY]);
  } catch (error) {
    frontend.toast("warn", t("noDetails"), error.message);
  }
}

/** Changes what nodes show, those for which `change` returns true. */
function change(change) {
  for (const [node, shown] of states) {
    if (change(shown)) {
      draw(node);
    }
  }
}

function stop(shown) {
  const ran = Boolean(shown.running);
  shown.running = null;
  return ran;
}

function started() {
  change((shown) => {
    const had = Boolean(shown.error || shown.cancelled || shown.running);
    shown.error = shown.cancelled = shown.running = null;
    return had;
  });
}

function moved(message) {
  const node = frontend.nodeOf(message.node);
  if (!frontend.ours(node)) {
    return;
  }
  const shown = state(node);
  const now = performance.now() / 1000;
  const began = Math.min(shown.running?.began ?? Infinity, now - (message.elapsed ?? 0));
  shown.running = { ...message, began, at: now };
  shown.error = shown.cancelled = null;
  draw(node);
}

function failed({ node_id: id, exception_message: message }) {
  change(stop);
  const node = frontend.nodeOf(id);
  if (frontend.ours(node)) {
    state(node).error = String(message ?? "").trim() || t("failed");
    draw(node);
  }
}

function interrupted({ node_id: id }) {
  const node = frontend.nodeOf(id);
  change((shown) => {
    const ran = stop(shown);
    shown.cancelled = ran;
    return ran;
  });
  if (frontend.ours(node)) {
    state(node).cancelled = true;
    draw(node);
  }
}

/** The details' code is fetched while nothing else is to do, so that they open at once. */
function prepare(result) {
  if (result.report) {
    (window.requestIdleCallback ?? setTimeout)(() => import("./details.mjs"));
  }
}

export const results = {
  async setup() {
    await loadWords();
    frontend.on("execution_start", started);
    frontend.on("roundsmith.progress", moved);
    frontend.on("execution_error", failed);
    frontend.on("execution_interrupted", interrupted);
    frontend.on("execution_success", () => change(stop));
    setInterval(() => change(({ running }) => Boolean(running)), TICK);
  },

  nodeCreated(node) {
    if (!frontend.ours(node)) {
      return;
    }
    frontend.onExecuted(node, (output) => {
      const result = output?.roundsmith?.[0];
      if (!result) {
        return;
      }
      node.properties[KEY] = result;
      Object.assign(state(node), { running: null, error: null, cancelled: null });
      draw(node);
      frontend.changed();
      setTimeout(() => frontend.fit(node), SETTLED);
      prepare(result);
    });
  },

  loadedGraphNode(node) {
    const result = frontend.ours(node) && node.properties?.[KEY];
    if (result) {
      draw(node);
      prepare(result);
    }
  },
};
