/** Numbers for people. */

/** `1536` → `1.5 KB`; decimal units, as shops and browsers count. */
export function bytes(count) {
  let value = count;
  for (const unit of ["B", "KB", "MB"]) {
    if (Math.abs(value) < 999.5) {
      return `${unit === "B" || value >= 99.5 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
    }
    value /= 1000;
  }
  return `${value.toFixed(2)} GB`;
}

/** Decibels; nothing where there are none. */
export const decibels = (value) => (Number.isFinite(value) ? `${value.toFixed(1)} dB` : "");

/** Seconds as `4 s`, `3:05`, `1:02:03`. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) {
    return `${whole} s`;
  }
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}
