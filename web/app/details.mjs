/** The details of a result: a table of its layers, what to know of them, the recipe. */

import { blocks } from "./blocks.mjs";
import { blockOf, filled, sorted } from "./columns.mjs";
import { copy, h } from "./dom.mjs";
import { frontend } from "./frontend.mjs";
import { summary } from "./summary.mjs";
import { Table } from "./table.mjs";
import { t } from "./text.mjs";

const styled = frontend.style("app/details.css");

/**
 * Opens the details of a result over the page; Escape closes them.
 * Throws an Error with the server's words where they are no longer kept.
 */
export async function details(title, result) {
  const [report] = await Promise.all([frontend.ask(`reports/${encodeURIComponent(result.report)}`), styled]);
  const before = document.activeElement;
  const dialog = h("dialog", { class: "roundsmith-details", "aria-label": title });
  const close = h(
    "button",
    { type: "button", class: "close", "aria-label": t("close"), title: t("close"), onclick: () => dialog.close() },
    "✕",
  );
  const rows = Array.isArray(report.rows) ? report.rows : [];
  dialog.append(
    h("header", {}, h("h2", {}, title), close),
    h("div", { class: "about" }, summary({ ...report, report: null, hidden: 0 }), h("div", {}, texts(report))),
    ...(rows.length ? layers(rows) : []),
  );
  // Keys and the clipboard are the dialog's while it is open, not the canvas'.
  for (const event of ["keydown", "keyup", "copy", "paste", "cut", "wheel"]) {
    dialog.addEventListener(event, (e) => e.stopPropagation());
  }
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("input")?.focus();
  return dialog;
}

function layers(rows) {
  const columns = filled(rows);
  const shown = { text: "", kind: "", block: null, column: null, down: false, rows };
  const table = new Table(columns, (column) => {
    const again = shown.column === column;
    Object.assign(shown, again && shown.down ? { column: null, down: false } : { column, down: again });
    show();
  });
  const count = h("span", { class: "count", "aria-live": "polite" });
  const search = h("input", {
    type: "search",
    placeholder: t("filter"),
    "aria-label": t("filter"),
    oninput: (event) => show({ text: event.target.value.toLowerCase() }),
  });
  const chart = blocks(rows, (block) => show({ block }));

  function show(change = {}) {
    Object.assign(shown, change);
    const { text, kind, block, column, down } = shown;
    const found = rows.filter(
      (row) =>
        (block === null || blockOf(row.name) === block) &&
        (!kind || kindOf(row) === kind) &&
        (!text || ["name", "stored_as", "method", "reason", "what"].some((key) =>
          String(row[key] ?? "").toLowerCase().includes(text))),
    );
    shown.rows = column ? sorted(found, column, down) : found;
    count.textContent = t("shown", { n: shown.rows.length, m: rows.length });
    table.show(shown.rows, column, down);
  }

  const kinds = [...new Set(rows.map(kindOf))].filter(Boolean);
  const choice = kinds.length < 2 ? null : h(
    "select",
    { "aria-label": t("formats"), onchange: (event) => show({ kind: event.target.value }) },
    h("option", { value: "" }, t("allFormats")),
    kinds.map((kind) => h("option", { value: kind }, kindWord(kind))),
  );
  const button = (label, make) =>
    h("button", { type: "button", class: "roundsmith-button", onclick: async (event) => {
      await copy(make(), event.target);
      event.target.textContent = t("copied");
      setTimeout(() => (event.target.textContent = label), 1500);
    } }, label);
  show();
  return [
    chart,
    h(
      "div",
      { class: "tools" },
      search,
      choice,
      count,
      button(t("copyJson"), () => JSON.stringify(shown.rows, null, 1)),
      button(t("copyCsv"), () => csv(columns, shown.rows)),
    ),
    table.element,
  ].filter(Boolean);
}

const KEPT = "\u0000keep";
const REMOVED = "\u0000remove";
const kindOf = (row) =>
  row.action === "keep" ? KEPT : row.action === "remove" ? REMOVED : String(row.stored_as ?? "");
const kindWord = (kind) => (kind === KEPT ? t("kept") : kind === REMOVED ? t("removed") : kind);

/** What is long: the recipe, how the file was made, the steps of a comparison. */
function texts({ recipe, made, settings, steps, facts }) {
  const long = [
    [t("recipe"), recipe],
    [t("made"), made && Object.keys(made).length ? made : null],
    [t("settings"), settings],
    [t("steps"), steps?.length ? steps : null],
    [t("choice"), facts?.choice],
  ].filter(([, value]) => value);
  return long.map(([name, value]) =>
    h(
      "details",
      {},
      h("summary", {}, name),
      h("pre", { tabindex: 0 }, typeof value === "string" ? value : JSON.stringify(value, null, 2)),
    ),
  );
}

/** Rows for a spreadsheet; text that one would take for a formula is marked as text. */
export function csv(columns, rows) {
  const cell = (value) => {
    const text = Array.isArray(value) ? value.join("×") : String(value ?? "");
    const safe = typeof value !== "number" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [columns.map(({ key }) => key), ...rows.map((row) => columns.map(({ key }) => row[key]))];
  return lines.map((line) => line.map(cell).join(",")).join("\r\n");
}
