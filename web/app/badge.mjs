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

/** The badge's text, whether it warns, and what it says at length. */
function say(node, file) {
  const parts = [mix(file), bytes(file.bytes)].filter(Boolean);
  const stock = frontend.ours(node) ? null : loader(node).ours;
  if (stock && !file.stock) {
    const title = frontend.titleOf(stock);
    const text = t(file.roundsmith ? "badgeUse" : "badgeUnreadable", { loader: title });
    return { text: [...parts, text].join(" · "), warn: true, more: file.why.join("\n") };
  }
  parts.push(t(file.roundsmith ? (file.stock ? "badgeStock" : "badgeNotStock") : "badgeUnreadable"));
  return { text: parts.join(" · "), warn: !file.roundsmith, more: file.why.join("\n") };
}

function show(node, said) {
  if (frontend.ours(node) || frontend.vueNodes() || hasPanel(node)) {
    frontend.setBadge(node, null);
    const { text, warn, more } = said ?? { text: "–", warn: false, more: "" };
    const title = more ? `${text}\n${more}` : text;
    const line = h("div", { class: warn ? "roundsmith-warning" : undefined, title }, text);
    fill(section(node, "badge"), line);
    frontend.redraw(node);
  } else {
    frontend.setBadge(node, said);
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
      said = say(node, joined(files));
    } catch (error) {
      said = { text: error.message, warn: true, more: "" };
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
