/** A tree of blocks and layers of which only what is seen is in the page. Keyboard as a tree has. */

import { fill, h } from "./dom.mjs";

const HEIGHT = 26;
const MARGIN = 8;
const NATURAL = new Intl.Collator("en", { numeric: true });
let count = 0;

export class Tree {
  /**
   * @param {{name: string, block: string}[]} layers in order
   * @param {(row: object) => Node[]} cells what a row shows after its name
   * @param {() => void} changed the selection did
   */
  constructor(label, layers, cells, changed) {
    Object.assign(this, { layers, cells, changed, rows: [], active: 0, filter: "" });
    this.made = new Map(); // elements by index, while what they show is so
    this.drawn = new Map(); // those in the page
    this.id = `roundsmith-tree-${count++}`;
    this.selected = new Set();
    this.open = new Set();
    const found = new Map();
    layers.forEach(({ block }, i) => {
      found.set(block, found.get(block) ?? []);
      found.get(block).push(i);
    });
    // Blocks by their numbers; layers outside blocks last.
    const order = (a, b) => (a === "") - (b === "") || NATURAL.compare(a, b);
    this.blocks = new Map([...found].sort(([a], [b]) => order(a, b)));
    this.space = h("div", { class: "space" });
    this.element = h(
      "div",
      {
        class: "tree", role: "tree", tabindex: "0", "aria-label": label,
        "aria-multiselectable": "true", onscroll: () => this.later(), onkeydown: (e) => this.key(e),
      },
      this.space,
    );
    this.list();
  }

  /** Shows the layers whose name holds every word. */
  search(text) {
    this.filter = text.trim().toLowerCase();
    this.active = 0;
    this.element.scrollTop = 0;
    this.list();
  }

  shown(indices) {
    const words = this.filter.split(/\s+/).filter(Boolean);
    return indices.filter((i) => words.every((w) => this.layers[i].name.toLowerCase().includes(w)));
  }

  list() {
    this.rows = [];
    for (const [block, all] of this.blocks) {
      const layers = this.shown(all);
      if (!layers.length) {
        continue;
      }
      const open = Boolean(this.filter) || block === "" || this.open.has(block);
      if (block !== "") {
        this.rows.push({ block, layers, open });
      }
      if (open) {
        this.rows.push(...layers.map((i) => ({ layers: [i], name: this.layers[i].name, inside: block !== "" })));
      }
    }
    this.active = Math.max(0, Math.min(this.active, this.rows.length - 1));
    this.space.style.height = `${this.rows.length * HEIGHT}px`;
    this.draw();
  }

  /** Shows the rows in sight, all of them anew. */
  draw() {
    this.made.clear();
    this.drawn.clear();
    fill(this.space);
    this.scrolled();
    this.element.setAttribute("aria-activedescendant", `${this.id}-${this.active}`);
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.scrolled();
    });
  }

  /** Brings the rows that came into sight, and takes away those that went. */
  scrolled() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / HEIGHT) - MARGIN);
    const last = Math.min(this.rows.length, Math.ceil((scrollTop + (clientHeight || 600)) / HEIGHT) + MARGIN);
    for (const [index, element] of this.drawn) {
      if (index < first || index >= last) {
        element.remove();
        this.drawn.delete(index);
      }
    }
    let next = null;
    for (let index = last - 1; index >= first; index -= 1) {
      let element = this.drawn.get(index);
      if (!element) {
        element = this.made.get(index) ?? this.row(this.rows[index], index);
        this.space.insertBefore(element, next);
        this.made.set(index, element);
        this.drawn.set(index, element);
      }
      next = element;
    }
  }

  row(row, index) {
    const chosen = row.layers.filter((i) => this.selected.has(i)).length;
    const state = chosen === 0 ? "false" : chosen === row.layers.length ? "true" : "mixed";
    const caret = h("span", { class: "caret", "aria-hidden": "true" }, row.block === undefined ? "" : row.open ? "▾" : "▸");
    caret.addEventListener("click", (event) => {
      event.stopPropagation();
      this.active = index;
      this.toggle(row);
    });
    const name = row.name ?? row.block;
    const shown = row.inside ? name.slice(this.layers[row.layers[0]].block.length + 1) : name;
    return h(
      "div",
      {
        id: `${this.id}-${index}`, role: "treeitem", style: `top: ${index * HEIGHT}px`,
        class: `row${index === this.active ? " active" : ""}${row.inside ? " inside" : ""}`,
        "aria-selected": String(state === "true"), "aria-level": row.inside ? "2" : "1",
        "aria-expanded": row.block === undefined ? null : String(row.open), "aria-label": name, title: name,
        onclick: (event) => this.click(row, index, event),
      },
      caret,
      h("span", { class: `check ${state}`, "aria-hidden": "true" }),
      h("span", { class: "name" }, shown, row.block === undefined ? null : h("small", {}, ` × ${row.layers.length}`)),
      ...this.cells(row),
    );
  }

  click(row, index, event) {
    if (event.shiftKey) {
      const [from, to] = [this.active, index].sort((a, b) => a - b);
      this.select(this.rows.slice(from, to + 1).flatMap((r) => r.layers), true);
    } else {
      this.select(row.layers);
    }
    this.active = index;
    this.draw();
  }

  /** Selects layers, or the reverse where all of them are. */
  select(layers, on = !layers.every((i) => this.selected.has(i))) {
    layers.forEach((i) => (on ? this.selected.add(i) : this.selected.delete(i)));
    this.draw();
    this.changed();
  }

  toggle(row, open = !row.open) {
    if (row.block !== undefined && !this.filter && open !== row.open) {
      open ? this.open.add(row.block) : this.open.delete(row.block);
      this.list();
    }
  }

  go(index) {
    this.active = Math.max(0, Math.min(index, this.rows.length - 1));
    const top = this.active * HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    this.element.scrollTop = Math.min(top, Math.max(scrollTop, top + HEIGHT - clientHeight));
    this.draw();
  }

  key(event) {
    const row = this.rows[this.active];
    const page = Math.max(1, Math.floor(this.element.clientHeight / HEIGHT) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    if (event.key in steps) {
      this.go(this.active + steps[event.key]);
    } else if (!row) {
      return;
    } else if (event.key === "ArrowRight") {
      this.toggle(row, true);
    } else if (event.key === "ArrowLeft") {
      if (row.inside && !this.filter) {
        const head = this.rows.slice(0, this.active).findLastIndex((r) => r.block !== undefined);
        this.go(head);
      } else {
        this.toggle(row, false);
      }
    } else if (event.key === " ") {
      this.select(row.layers);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      this.select(this.rows.flatMap((r) => r.layers), true);
    } else {
      return;
    }
    event.preventDefault();
  }
}
