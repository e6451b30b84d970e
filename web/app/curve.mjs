/** Size against quality, drawn; points can be clicked, or reached by Tab and pressed. */

import { h } from "./dom.mjs";
import { bytes, decibels } from "./format.mjs";
import { frontend } from "./frontend.mjs";
import { t } from "./text.mjs";

export const NODE_WIDTH = 400;
const HEIGHT = 190;
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
  const drawing = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "slider", tabindex: "0", "aria-label": t("curveTitle") });
  drawing.setAttribute("aria-valuemin", x0);
  drawing.setAttribute("aria-valuemax", x1);
  drawing.append(
    s("path", { class: "axes", d: `M${LEFT} 8V${HEIGHT - BOTTOM}H${WIDTH - 6}` }),
    label(LEFT, HEIGHT - 6, bytes(x0), "start"),
    label(WIDTH - 6, HEIGHT - 6, bytes(x1), "end"),
    label(LEFT - 4, HEIGHT - BOTTOM, y0.toFixed(0), "end"),
    label(LEFT - 4, 16, `${y1.toFixed(0)} dB`, "end"),
    s("polyline", { class: "line", points: line.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }),
  );

  const points = [
    ...dots.map(([name, size, level]) => ({ name: String(name), size, level, kind: "dot" })),
    ...line.map(([size, level]) => ({ name: "", size, level, kind: "best" })),
  ].sort((one, other) => one.size - other.size);
  for (const point of points) {
    Object.assign(point, { x: x(point.size), y: y(point.level) });
    point.what = [point.name, bytes(point.size), decibels(point.level)].filter(Boolean).join(" · ");
    point.circle = s("circle", { class: point.kind, cx: point.x, cy: point.y, r: point.kind === "dot" ? 3 : 2.5 });
    drawing.append(point.circle);
  }
  const ring = s("circle", { class: "here", r: 6, visibility: "hidden" });
  drawing.append(ring);
  let here = Math.max(0, points.findIndex(({ size }) => size >= found.size));

  function go(index) {
    here = Math.max(0, Math.min(index, points.length - 1));
    const point = points[here];
    Object.entries({ cx: point.x, cy: point.y, visibility: "visible" }).forEach(([k, v]) => ring.setAttribute(k, v));
    drawing.setAttribute("aria-valuenow", point.size);
    drawing.setAttribute("aria-valuetext", point.what);
    said.textContent = point.what;
  }

  function take() {
    target(node, points[here].size);
    said.textContent = t("curveSet", { what: points[here].what });
  }

  function nearest(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    const away = points.map((point) => Math.hypot(point.x - at.x, point.y - at.y));
    return away.indexOf(Math.min(...away));
  }

  drawing.addEventListener("pointermove", (event) => go(nearest(event)));
  drawing.addEventListener("focus", () => go(here));
  drawing.addEventListener("click", (event) => {
    go(nearest(event));
    take();
  });
  drawing.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -1e9, End: 1e9 };
    if (event.key in steps) {
      go(here + steps[event.key]);
    } else if (event.key === "Enter" || event.key === " ") {
      take();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  if (Number.isFinite(found.size) && Number.isFinite(found.snr)) {
    drawing.append(s("circle", { class: "now", cx: x(found.size), cy: y(found.snr), r: 4.5 }));
  }
  return [drawing, said];
}

/** The node's target becomes a size: what is chosen for it is a point of the curve. */
function target(node, size) {
  frontend.setWidget(node, "target", "size, GB");
  frontend.setNumber(node, "target.size", Math.ceil(size / 1e9 / STEP) * STEP);
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
