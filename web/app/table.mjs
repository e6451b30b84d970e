/** A table of any number of rows: only those in sight are elements, and they are used again. */

import { h } from "./dom.mjs";
import { t } from "./text.mjs";

const ROW = 26; // px, as in details.css
const BEYOND = 8; // rows drawn above and below what is in sight

export class Table {
  /**
   * @param {object[]} columns of `columns.mjs`
   * @param {(column: object) => void} sort called when a person clicks a column's title
   */
  constructor(columns, sort) {
    this.columns = columns;
    this.rows = [];
    this.pool = [];
    const widths = columns.map((column) => column.width).join(" ");
    this.titles = columns.map((column) =>
      h(
        "div",
        { role: "columnheader", class: column.right ? "right" : "" },
        h("button", { type: "button", onclick: () => sort(column) }, t(`column_${column.key}`)),
      ),
    );
    this.body = h("div", { class: "rows", role: "rowgroup", onpointerover: whole });
    this.element = h(
      "div",
      {
        class: "roundsmith-table",
        role: "table",
        tabindex: 0,
        "aria-label": t("layers"),
        style: `--columns: ${widths}`,
        onscroll: () => this.later(),
      },
      h("div", { class: "titles row", role: "row" }, this.titles),
      this.body,
    );
    new ResizeObserver(() => this.later()).observe(this.element);
  }

  /** Shows other rows, or in another order. */
  show(rows, sortedBy, down) {
    this.rows = rows;
    this.columns.forEach((column, i) => {
      const order = column === sortedBy ? (down ? "descending" : "ascending") : "none";
      this.titles[i].setAttribute("aria-sort", order);
    });
    this.body.style.height = `${rows.length * ROW}px`;
    this.element.setAttribute("aria-rowcount", rows.length + 1);
    this.pool.forEach((entry) => (entry.row = null));
    this.draw();
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - BEYOND);
    const last = Math.min(this.rows.length, Math.ceil((scrollTop + (clientHeight || 600)) / ROW) + BEYOND);
    const needed = last - first;
    while (this.pool.length < needed) {
      this.pool.push(this.entry());
    }
    const size = this.pool.length;
    const used = new Set();
    for (let index = first; index < last; index += 1) {
      const entry = this.pool[index % size];
      used.add(entry);
      if (entry.row !== this.rows[index] || entry.index !== index) {
        this.put(entry, index);
      }
    }
    for (const entry of this.pool) {
      entry.element.hidden = !used.has(entry);
    }
  }

  entry() {
    const texts = this.columns.map(() => document.createTextNode(""));
    const cells = texts.map((text, i) =>
      h("div", { role: "cell", class: this.columns[i].right ? "right" : "" }, text),
    );
    const element = h("div", { class: "row", role: "row" }, cells);
    this.body.append(element);
    return { element, texts, row: null, index: -1 };
  }

  put(entry, index) {
    const row = this.rows[index];
    Object.assign(entry, { row, index });
    entry.element.style.transform = `translateY(${index * ROW}px)`;
    entry.element.setAttribute("aria-rowindex", index + 2);
    entry.element.classList.toggle("odd", index % 2 === 1);
    entry.element.classList.toggle("kept", row.action === "keep" || row.action === "remove");
    this.columns.forEach((column, i) => {
      const text = column.show(row[column.key]);
      if (entry.texts[i].data !== text) {
        entry.texts[i].data = text;
      }
    });
  }
}

/** What a cell cuts off shows in full under the pointer. */
function whole({ target }) {
  if (target.getAttribute("role") === "cell") {
    target.title = target.scrollWidth > target.clientWidth ? target.textContent : "";
  }
}
