/** The one element below a node's widgets, in sections: what its file holds, then what it made. */

import { h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";

const SECTIONS = ["badge", "results"];
const AROUND = 16; // the panel's padding, and the margin around it
const LINE = 18;
const panels = new WeakMap();

/** What the sections need; a line for each child of theirs where nothing is laid out yet. */
function height(element) {
  const heights = [...element.children].map((child) => child.offsetHeight || LINE * child.children.length);
  return heights.reduce((sum, one) => sum + one, AROUND);
}

/** A section of a node's panel, made where it is not there yet. The caller fills it, then `fit`s. */
export function section(node, name) {
  if (!panels.has(node)) {
    panels.set(node, h("div", { class: "roundsmith-panel" }));
  }
  const element = panels.get(node);
  let found = [...element.children].find((child) => child.dataset.section === name);
  if (!found) {
    found = h("div", { "data-section": name, class: `roundsmith-${name}` });
    const later = SECTIONS.slice(SECTIONS.indexOf(name) + 1);
    const next = [...element.children].find((child) => later.includes(child.dataset.section));
    element.insertBefore(found, next ?? null);
  }
  frontend.addPanel(node, element, () => height(element));
  return found;
}

/** Whether a node has a panel. */
export const hasPanel = (node) => panels.has(node);
