/** The one element below a node's widgets, in sections: what its file holds, then what it made. */

import { h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";

const SECTIONS = ["badge", "results"];
const LINE = 30;
const panels = new WeakMap();

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
  const least = () => (element.children.length > 1 || name === "results" ? 64 : LINE);
  frontend.addPanel(node, element, () => element.scrollHeight || least());
  return found;
}
