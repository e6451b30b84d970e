/** The one element below a node's widgets, in sections: what its file holds, what it made, a curve. */

import { h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";

const SECTIONS = ["badge", "results", "curve"];
const AROUND = 14; // the panel's own padding and border, above and below
const UNKNOWN = 50; // until the browser has laid it out
const panels = new WeakMap();

/** A section of a node's panel, made where it is not there yet. The panel grows with what is in it. */
export function section(node, name) {
  if (!panels.has(node)) {
    const inner = h("div", { class: "roundsmith-inner" });
    panels.set(node, inner);
    new ResizeObserver(() => frontend.fit(node)).observe(inner);
  }
  const inner = panels.get(node);
  let found = [...inner.children].find((child) => child.dataset.section === name);
  if (!found) {
    found = h("div", { "data-section": name, class: `roundsmith-${name}` });
    const later = SECTIONS.slice(SECTIONS.indexOf(name) + 1);
    const next = [...inner.children].find((child) => later.includes(child.dataset.section));
    inner.insertBefore(found, next ?? null);
  }
  const panel = inner.parentElement ?? h("div", { class: "roundsmith-panel" }, inner);
  frontend.addPanel(node, panel, () => (inner.offsetHeight || UNKNOWN) + AROUND);
  return found;
}

/** Whether a node has a panel. */
export const hasPanel = (node) => panels.has(node);
