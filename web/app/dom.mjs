/** Elements made from text; nothing here ever parses HTML. */

/**
 * An element. Attributes that are functions become listeners (`onclick`), `class`, `title` and the
 * like are set as attributes; children are elements or text.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name.replace(/^on/, ""), value);
    } else if (value !== undefined && value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A new content for an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((c) => c !== null && c !== undefined));
  return element;
}

/** Puts a text on the clipboard, also where the page is not trusted with it (plain http). */
export async function copy(text, beside = document.body) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "roundsmith-unseen" });
    area.value = text;
    beside.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    beside.focus?.();
  }
}
