/** The layer picker: a model's layers, what each gets, and what that makes of the file. */

import { fill, h } from "./dom.mjs";
import { bytes, decibels } from "./format.mjs";
import { frontend } from "./frontend.mjs";
import { surroundings } from "./surroundings.mjs";
import { t } from "./text.mjs";
import { Tree } from "./tree.mjs";

const styled = frontend.style("app/picker.css");
const WAIT = 120; // ms after a click before the plan is asked for
const BEST = 60; // dB at which a bar is full
const KEEP = "keep";
const KEPT = "keep in high precision"; // the value of a Layer Rule
const RECIPE = "recipe";
const DEFAULTS = { format: "int8_tensorwise", "format.scaling": "row", "format.convrot": "auto" };

/** Opens the picker of a Quantization Recipe or a Layer Rule; settles when it shows layers. */
export async function pick(node) {
  await new Picker(node).start();
}

class Picker {
  constructor(node) {
    this.node = node;
    this.near = surroundings(node);
    this.one = this.near.at >= 0; // a Layer Rule: one choice for the layers selected
    this.choice = "";
    this.picked = new Map(); // choices by layer, in a recipe
    this.asked = 0;
  }

  async start() {
    const list = h("datalist", { id: "roundsmith-sources" });
    this.source = h("input", {
      type: "text", list: list.id, "aria-label": t("pickModel"), placeholder: t("pickModel"),
      value: this.near.files[0] ?? "", onchange: () => this.load(), onfocus: (e) => e.target.select(),
    });
    this.filter = h("input", {
      type: "search", placeholder: t("pickSearch"), "aria-label": t("pickSearch"),
      oninput: (event) => this.tree?.search(event.target.value),
      onkeydown: (event) => event.key === "ArrowDown" && this.tree?.element.focus(),
    });
    this.kinds = h("div", { class: "kinds", role: "group", "aria-label": t("pickKinds") });
    this.body = h("div", { class: "layers" }, h("p", {}, t("pickLoading")));
    this.count = h("span", { class: "count", "aria-live": "polite" });
    this.select = h("select", { "aria-label": t("pickFormat"), onchange: () => this.choose() });
    this.clear = h("button", { type: "button", onclick: () => this.unselect() }, t("pickClear"));
    this.known = h("p", { class: "known" });
    this.result = h("div", { class: "result", "aria-live": "polite" });
    this.text = h("pre", { tabindex: "0", "aria-label": t("pickRules") });
    this.ok = h("button", { type: "button", class: "ok", disabled: true, onclick: () => this.accept() }, t("ok"));
    const cancel = h("button", { type: "button", onclick: () => this.dialog.close() }, t("cancel"));
    this.dialog = h(
      "dialog",
      { class: "roundsmith-picker", "aria-label": t("pickTitle") },
      h("header", {}, h("h2", {}, t("pickTitle")), this.source, list, this.filter),
      this.kinds,
      this.body,
      h("div", { class: "choose" }, this.count, this.select, this.clear),
      this.known,
      h("footer", {}, h("div", { class: "sum" }, this.result, this.text), cancel, this.ok),
    );
    for (const event of ["keydown", "keyup", "copy", "paste", "cut", "wheel"]) {
      this.dialog.addEventListener(event, (e) => e.stopPropagation()); // not the canvas'
    }
    const before = document.activeElement;
    this.dialog.addEventListener("close", () => {
      this.dialog.remove();
      before?.focus?.();
    });
    await styled;
    document.body.append(this.dialog);
    this.dialog.showModal();
    const files = frontend.ask("sources").then(({ sources }) => {
      fill(list, sources.map((value) => h("option", { value })));
      return sources;
    });
    if (!this.source.value) {
      this.source.value = (await files)[0] ?? "";
    }
    await this.load();
  }

  /** Shows the layers of the file that is named. */
  async load() {
    const match = this.one ? this.near.rules[this.near.at].match : "";
    this.picked.clear();
    const first = this.one ? null : this.request(); // while the layers are on their way
    first?.catch(() => {}); // said below, by whichever fails first
    try {
      this.show(await frontend.ask("layers", { source: this.source.value, match }));
    } catch (error) {
      this.tree = null;
      this.ok.disabled = true;
      fill(this.body, h("p", { role: "alert" }, error.message));
      fill(this.kinds);
      fill(this.result);
      return;
    }
    await this.plan(first ?? undefined);
    this.tree?.element.focus();
  }

  show({ layers, matched, choices }) {
    this.layers = layers.map(([name, block, kind, shape, size]) => ({ name, block, kind, shape, size }));
    this.rows = null;
    this.tree = new Tree(t("pickTitle"), this.layers, (row) => this.cells(row), () => this.counted());
    if (this.one) {
      matched.forEach((i) => this.tree.selected.add(i));
    }
    const head = ["pickLayer", "pickShape", "pickSize", "pickStored", "pickQuality", "pickSensitivity"];
    fill(this.body, h("div", { class: "head" }, h("span"), h("span"), head.map((key) => h("span", {}, t(key)))), this.tree.element);
    const options = choices.map(({ key, title, stock, expected, fits }) => {
      const said = [key, expected === null ? "" : `≈ ${decibels(expected)}`];
      said.push(stock ? t("pickStock") : "", fits < layers.length ? t("pickFits", { fits, all: layers.length }) : "");
      return h("option", { value: key, title, disabled: fits === 0 }, said.filter(Boolean).join(" · "));
    });
    const back = this.one ? null : h("option", { value: RECIPE }, t("pickAsRecipe"));
    fill(this.select, h("option", { value: "" }, t("pickFormat")), back, h("option", { value: KEEP }, t("pickKeep")), options);
    if (this.one) {
      this.select.value = this.choice = this.current(choices);
    }
    this.chips();
    this.tree.draw();
    this.counted();
  }

  /** The choice that a Layer Rule's widgets make. */
  current(choices) {
    const { format, ...rest } = this.near.rules[this.near.at];
    const has = ([name, value]) => String(rest[`format.${name}`]) === value;
    const said = (key) => key.split(" ").slice(1).map((word) => word.split("="));
    const alike = choices.filter(({ key }) => key.split(" ")[0] === format);
    return (alike.find(({ key }) => said(key).every(has)) ?? alike[0])?.key ?? KEEP;
  }

  /** A button for each kind that several blocks have. */
  chips() {
    const kinds = new Map();
    this.layers.forEach(({ kind, block }, i) => block && kinds.set(kind, [...(kinds.get(kind) ?? []), i]));
    const several = [...kinds].filter(([, some]) => some.length > 1).sort((a, b) => b[1].length - a[1].length);
    this.chosen = several.slice(0, 40).map(([kind, some]) => ({
      some,
      button: h("button", { type: "button", onclick: () => this.tree.select(some) }, kind, h("small", {}, ` × ${some.length}`)),
    }));
    fill(this.kinds, this.chosen.map(({ button }) => button));
  }

  /** What the selection is. */
  counted() {
    const { selected } = this.tree;
    const size = [...selected].reduce((sum, i) => sum + this.layers[i].size, 0);
    this.count.textContent = selected.size
      ? t("pickSelected", { count: selected.size, size: bytes(size) })
      : t("pickNothing");
    this.chosen.forEach(({ some, button }) =>
      button.setAttribute("aria-pressed", String(some.every((i) => selected.has(i)))),
    );
    this.select.disabled = this.clear.disabled = selected.size === 0;
    if (this.one) {
      this.later();
    } else {
      this.select.value = "";
    }
  }

  unselect() {
    this.tree.select([...this.tree.selected], false);
    this.tree.element.focus();
  }

  choose() {
    const choice = this.select.value;
    if (this.one) {
      this.choice = choice || this.choice;
      this.select.value = this.choice;
    } else if (choice) {
      this.tree.selected.forEach((i) => this.picked.set(i, choice));
    }
    this.later();
  }

  later() {
    clearTimeout(this.timer);
    this.ok.disabled = true;
    this.timer = setTimeout(() => this.plan(), WAIT);
  }

  /** The layers of each choice. */
  picks() {
    const named = (some) => [...some].sort((a, b) => a - b).map((i) => this.layers[i].name);
    if (this.one) {
      return [{ choice: this.choice, layers: named(this.tree.selected) }];
    }
    const choices = new Map();
    this.picked.forEach((choice, i) => choices.set(choice, [...(choices.get(choice) ?? []), i]));
    return [...choices].map(([choice, some]) => ({ choice, layers: named(some) }));
  }

  /** Asks what the choices make of the file. */
  request() {
    return frontend.ask("plan", {
      source: this.source.value, widgets: this.near.recipe ?? DEFAULTS, rules: this.near.rules,
      picks: this.picks(), report: this.near.report, at: this.one ? this.near.at : null,
    });
  }

  /** Shows what the choices make of the file. */
  async plan(answer = this.request()) {
    const number = ++this.asked;
    try {
      const made = await answer;
      if (number === this.asked) {
        this.planned(made);
      }
    } catch (error) {
      if (number === this.asked) {
        fill(this.result, h("p", { role: "alert" }, error.message));
      }
    }
  }

  planned(made) {
    this.made = made;
    const levels = made.offsets.filter((offset) => offset !== null);
    const [least, most] = [Math.min(...levels), Math.max(...levels)];
    this.rows = made.layers.map(([stored, format, size, level, measured, reason], i) => ({
      stored: made.texts[stored], format: made.texts[format], size, level, measured,
      reason: made.texts[reason], offset: made.offsets[i],
      sensitive: made.offsets[i] === null ? null : most > least ? (most - made.offsets[i]) / (most - least) : 0,
    }));
    this.text.textContent = made.rules || t("pickNoRules");
    this.known.textContent = made.measured
      ? t("pickMeasured", { count: made.measured })
      : t("pickUnmeasured");
    const quality = made.snr === null ? "" : t("pickPredicted", { value: decibels(made.snr) });
    const unknown = made.unknown ? t("pickUnknown", { count: made.unknown }) : "";
    fill(
      this.result,
      h("strong", { class: "size" }, `${bytes(made.before)} → ${bytes(made.size)}`),
      h("span", {}, ` ${[t("pickCount", { count: made.quantized }), quality, unknown].filter(Boolean).join(" · ")}`),
    );
    this.ok.disabled = this.one && this.tree.selected.size === 0;
    this.tree.draw();
  }

  /** What a row shows after its name. */
  cells({ layers }) {
    const rows = this.rows ? layers.map((i) => this.rows[i]) : [];
    const before = layers.reduce((sum, i) => sum + this.layers[i].size, 0);
    const after = rows.reduce((sum, row) => sum + row.size, 0);
    const stored = [...new Set(rows.map((row) => row.stored || t("pickAsIs")))];
    const reasons = [...new Set(rows.map((row) => row.reason).filter(Boolean))].join("\n");
    const changed = layers.some((i) => this.picked.has(i));
    const levels = rows.filter((row) => row.stored).map((row) => row.level);
    const known = levels.length > 0 && levels.every((level) => level !== null);
    const level = known ? -10 * Math.log10(levels.reduce((sum, x) => sum + 10 ** (-x / 10), 0) / levels.length) : null;
    const felt = rows.map((row) => row.sensitive).filter((x) => x !== null);
    const worst = felt.length ? Math.max(...felt) : null;
    const offset = rows.length === 1 ? rows[0].offset : null;
    return [
      h("span", { class: "shape" }, layers.length === 1 ? this.layers[layers[0]].shape.join("×") : ""),
      h("span", { class: "bytes" }, rows.length ? `${bytes(before)} → ${bytes(after)}` : bytes(before)),
      h("span", { class: `stored${changed ? " changed" : ""}`, title: reasons || null }, stored.length > 1 ? t("pickMixed", { count: stored.length }) : stored[0] ?? ""),
      level === null ? h("span", { class: "bar" }, levels.length ? t("pickNotKnown") : "") : bar(level / BEST, `${decibels(level)}`, "quality"),
      worst === null ? h("span", { class: "bar" }) : bar(worst, offset === null ? "" : `${offset < 0 ? "−" : "+"}${Math.abs(offset).toFixed(1)}`, "sensitive"),
    ];
  }

  /** Writes what was picked into the node. */
  accept() {
    if (this.one) {
      const [format, ...settings] = this.choice.split(" ");
      frontend.setWidget(this.node, "match", this.made.rules);
      frontend.setWidget(this.node, "format", this.choice === KEEP ? KEPT : format);
      settings.map((word) => word.split("=")).forEach(([name, value]) =>
        frontend.setWidget(this.node, `format.${name}`, value),
      );
    } else {
      frontend.setWidget(this.node, "layer_rules", this.made.rules);
      frontend.showAdvanced(this.node);
    }
    frontend.changed();
    this.dialog.close();
  }
}

/** A bar of 0 to 1, and a number on it. */
function bar(share, text, kind) {
  const width = Math.round(100 * Math.max(0, Math.min(1, share)));
  return h("span", { class: `bar ${kind}` }, h("i", { style: `width: ${width}%` }), h("span", {}, text));
}
