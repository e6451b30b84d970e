/** The pack's words in the person's language: `locales/<language>/main.json`, key `roundsmith`. */

import { frontend } from "./frontend.mjs";

let words = {};
let english = {};

/** Fetches the translations; before that, and where there is none, a key stands for itself. */
export async function loadWords() {
  const all = await frontend.translations();
  english = all.en?.roundsmith ?? {};
  const language = String(frontend.setting("Comfy.Locale") ?? "en");
  words = all[language]?.roundsmith ?? all[language.split("-")[0]]?.roundsmith ?? english;
}

/** A message, with `{name}` replaced by `values.name`. */
export function t(key, values = {}) {
  const message = words[key] ?? english[key] ?? key;
  return message.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
