/** The columns of the tables of details: which there are, how a value reads, how it sorts. */

import { bytes, decibels } from "./format.mjs";

const text = { show: (v) => (v === null || v === undefined ? "" : String(v)), width: "minmax(80px, 1fr)" };
const db = { show: (v) => decibels(v), width: "88px", right: true };
const size = { show: (v) => (Number.isFinite(v) ? bytes(v) : ""), width: "84px", right: true };
const count = { show: (v) => (Number.isFinite(v) ? v.toLocaleString() : ""), width: "80px", right: true };
const small = { show: (v) => (Number.isFinite(v) ? v.toPrecision(3) : ""), width: "92px", right: true };
const percent = { show: (v) => (Number.isFinite(v) ? `${(v * 100).toFixed(2)} %` : ""), width: "80px", right: true };
const seconds = { show: (v) => (Number.isFinite(v) && v > 0 ? `${v.toFixed(2)} s` : ""), width: "72px", right: true };
const shape = {
  show: (v) => (Array.isArray(v) ? v.join("×") : ""),
  order: (v) => (Array.isArray(v) ? v.reduce((a, b) => a * b, 1) : null),
  width: "110px",
};

/** All columns in the order they stand in; a table has those that any of its rows has a value for. */
export const COLUMNS = [
  { key: "name", ...text, width: "minmax(230px, 2fr)" },
  { key: "shape", ...shape },
  { key: "stored_as", ...text, width: "minmax(190px, 1.5fr)" },
  { key: "bytes_before", ...size },
  { key: "bytes_after", ...size },
  { key: "method", ...text, width: "100px" },
  { key: "executed_snr", ...db },
  { key: "executed_snr_after", ...db },
  { key: "output_snr", ...db },
  { key: "output_snr_after", ...db },
  { key: "gain", ...db },
  { key: "snr", ...db },
  { key: "weight_snr", ...db },
  { key: "weight_snr_after", ...db },
  { key: "rank", ...count },
  { key: "tokens", ...count },
  { key: "inputs", ...count },
  { key: "used", ...count },
  { key: "nonfinite", ...count },
  { key: "scale_least", ...small },
  { key: "scale_largest", ...small },
  { key: "input_scale", ...small },
  { key: "reach", ...small },
  { key: "largest", ...small },
  { key: "at_max", ...percent },
  { key: "seconds", ...seconds },
  { key: "where", ...text, width: "130px" },
  { key: "what", ...text, width: "150px" },
  { key: "before", ...text },
  { key: "after", ...text },
  { key: "reason", ...text, width: "minmax(180px, 2fr)" },
];

/** The columns that `rows` fill. */
export const filled = (rows) =>
  COLUMNS.filter(({ key, show }) => rows.some((row) => show(row[key]) !== "" && row[key] !== 0));

/** The block a layer belongs to: `blocks.3.attn.q` → `blocks.3`; "" outside of any. */
export const blockOf = (name) => /^(.*?\.\d+)(?:\.|$)/.exec(String(name))?.[1] ?? "";

/** Rows in the order of a column; rows without a value last, whichever way. */
export function sorted(rows, column, down) {
  const order = column.order ?? ((v) => v);
  const keyed = rows.map((row) => [order(row[column.key]) ?? null, row]);
  const turn = down ? -1 : 1;
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true }));
  keyed.sort(([a], [b]) => {
    const [noA, noB] = [a === null || a === "", b === null || b === ""];
    return noA || noB ? noA - noB : turn * compare(a, b);
  });
  return keyed.map(([, row]) => row);
}
