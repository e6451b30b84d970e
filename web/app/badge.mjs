/**
 * What the file of a loader holds: on ours in the panel, on stock loaders as a badge above them; on
 * Vue nodes, which have no room above, in a panel too.
 */

import { fill, h } from "./dom.mjs";
import { bytes } from "./format.mjs";
import { frontend } from "./frontend.mjs";
import { loader, sources } from "./loaders.mjs";
import { hasPanel, section } from "./panel.mjs";
import { t } from "./text.mjs";

const watched = new Set();
const asked = new WeakMap();

/** Several files as one: formats counted together, and what any of them lacks, lacking. */
function joined(files) {
  const all = { formats: {}, bytes: 0, stock: true, roundsmith: true, why: [] };
  for (const file of files) {
    for (const [name, count] of Object.entries(file.formats)) {
      all.formats[name] = (all.formats[name] ?? 0) + count;
    }
    all.bytes += file.bytes;
    all.stock &&= file.stock;
    all.roundsmith &&= file.roundsmith;
    all.why.push(...file.why_not_stock, ...file.why_not_roundsmith);
  }
  return all;
}

function mix(file) {
  const formats = Object.entries(file.formats).sort(([, a], [, b]) => b - a);
  const some = formats.slice(0, 3).map(([name, count]) => `${count} × ${name}`);
  return [...some, ...(formats.length > 3 ? ["…"] : [])].join(" + ");
}

/** What a badge says: what is in the file, who reads it, whether that warns, and all at length. */
function say(node, file) {
  const holds = [mix(file), bytes(file.bytes)].filter(Boolean).join(" · ");
  const more = file.why.join("\n");
  const stock = frontend.ours(node) ? null : loader(node).ours;
  if (!file.roundsmith && !file.stock) {
    return { holds, reads: t("badgeUnreadable"), warn: true, more };
  }
  if (stock && !file.stock) {
    return { holds, reads: t("badgeUse", { loader: frontend.titleOf(stock) }), warn: true, more };
  }
  return { holds, reads: t(file.stock ? "badgeStock" : "badgeNotStock"), warn: false, more };
}

function show(node, said) {
  if (frontend.ours(node) || frontend.vueNodes() || hasPanel(node)) {
    frontend.setBadge(node, null);
    const { holds, reads, warn, more } = said ?? { holds: "–", reads: "\u00a0" };
    const title = [holds, reads, more].filter(Boolean).join("\n");
    const lines = frontend.ours(node) ? [holds, reads] : [`${reads} · ${holds}`]; // little room
    fill(
      section(node, "badge"),
      lines.map((line) => h("div", { title, class: warn && "roundsmith-warning" }, line)),
    );
    frontend.redraw(node);
  } else {
    frontend.setBadge(node, said && { text: `${said.holds} · ${said.reads}`, warn: said.warn });
  }
}

async function update(node) {
  const chosen = sources(node);
  const ticket = {};
  asked.set(node, ticket);
  let said = null;
  if (chosen.length) {
    try {
      const files = await Promise.all(chosen.map((source) => frontend.ask("file", { source })));
      const problem = files.find((file) => file.problem)?.problem;
      said = problem
        ? { holds: t("badgeBroken"), reads: problem, warn: true, more: "" }
        : say(node, joined(files));
    } catch (error) {
      said = { holds: t("badgeBroken"), reads: error.message, warn: true, more: "" };
    }
  }
  if (asked.get(node) === ticket) {
    show(node, said);
  }
}

function updateAll() {
  for (const reference of watched) {
    const node = reference.deref();
    if (!node) {
      watched.delete(reference);
    } else if (node.graph) {
      update(node);
    }
  }
}

export const badge = {
  setup() {
    frontend.onVueNodes(updateAll);
  },

  nodeCreated(node) {
    if (!loader(node)) {
      return;
    }
    if (frontend.ours(node) || frontend.vueNodes()) {
      show(node, null); // its line is there from the start: the node's size will not change
    }
    watched.add(new WeakRef(node));
    frontend.onWidgets(node, () => update(node));
    queueMicrotask(() => update(node));
  },

  loadedGraphNode(node) {
    if (loader(node)) {
      if (hasPanel(node)) {
        frontend.fit(node); // a workflow from before has no room for the line
      }
      update(node);
    }
  },

  refreshComboInNodes: updateAll,
};
