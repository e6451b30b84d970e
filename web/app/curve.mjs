/** Size against quality, drawn; points can be clicked, or reached by Tab and pressed. */

import { h } from "./dom.mjs";
import { bytes, decibels } from "./format.mjs";
import { frontend } from "./frontend.mjs";
import { t } from "./text.mjs";

export const HEIGHT = 190;
const WIDTH = 340;
const LEFT = 34;
const BOTTOM = 22;
const STEP = 1e-6; // GB: a target is rounded up to whole kilobytes

function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.append(...children);
  return element;
}

const pair = (point) => Array.isArray(point) && point.every(Number.isFinite);

/** The drawing of what a run found, which comes from a workflow's file: nothing is taken on trust. */
export function curve(node, found) {
  const line = (Array.isArray(found?.curve) ? found.curve : []).filter(pair).slice(0, 200);
  const dots = (Array.isArray(found?.uniform) ? found.uniform : [])
    .filter((dot) => Array.isArray(dot) && pair(dot.slice(1, 3)))
    .slice(0, 60);
  const all = [...line, ...dots.map((dot) => dot.slice(1, 3))];
  if (!all.length) {
    return h("div", {}, t("curveNone"));
  }
  const [x0, x1] = range(all.map(([size]) => size));
  const [y0, y1] = range(all.map(([, level]) => level));
  const x = (size) => LEFT + ((size - x0) / (x1 - x0)) * (WIDTH - LEFT - 10);
  const y = (level) => HEIGHT - BOTTOM - ((level - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - 10);
  const said = h("div", { class: "said", "aria-live": "polite" }, t("curveHint"));
  const drawing = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": t("curveTitle") });
  drawing.append(
    s("path", { class: "axes", d: `M${LEFT} 8V${HEIGHT - BOTTOM}H${WIDTH - 6}` }),
    label(LEFT, HEIGHT - 6, bytes(x0), "start"),
    label(WIDTH - 6, HEIGHT - 6, bytes(x1), "end"),
    label(LEFT - 4, HEIGHT - BOTTOM, y0.toFixed(0), "end"),
    label(LEFT - 4, 16, `${y1.toFixed(0)} dB`, "end"),
    s("polyline", { class: "line", points: line.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }),
  );

  function point(size, level, name, kind, radius) {
    const what = [name, bytes(size), decibels(level)].filter(Boolean).join(" · ");
    const take = () => {
      target(node, size);
      said.textContent = t("curveSet", { what });
      drawing.querySelectorAll(".taken").forEach((other) => other.classList.remove("taken"));
      made.classList.add("taken");
    };
    const made = s(
      "g",
      { class: `point ${kind}`, tabindex: "0", role: "button", "aria-label": what },
      s("title", {}, what),
      s("circle", { class: "reach", cx: x(size), cy: y(level), r: 7 }),
      s("circle", { cx: x(size), cy: y(level), r: radius }),
    );
    made.addEventListener("click", take);
    made.addEventListener("pointerenter", () => (said.textContent = what));
    made.addEventListener("focus", () => (said.textContent = what));
    made.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        event.stopPropagation();
        take();
      }
    });
    return made;
  }

  drawing.append(
    ...dots.map(([name, size, level]) => point(size, level, String(name), "dot", 3)),
    ...line.map(([size, level]) => point(size, level, "", "best", 2.5)),
  );
  if (Number.isFinite(found.size) && Number.isFinite(found.snr)) {
    drawing.append(s("circle", { class: "now", cx: x(found.size), cy: y(found.snr), r: 6 }));
  }
  return [drawing, said];
}

/** The node's target becomes a size: what is chosen for it is a point of the curve. */
function target(node, size) {
  frontend.setWidget(node, "target", "size, GB");
  frontend.setWidget(node, "target.size", Math.ceil(size / 1e9 / STEP) * STEP);
  frontend.changed();
}

function range(values) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const margin = (most - least || Math.abs(most) || 1) * 0.04;
  return [least - margin, most + margin];
}

function label(x, y, text, anchor) {
  return s("text", { x, y, "text-anchor": anchor }, text);
}
