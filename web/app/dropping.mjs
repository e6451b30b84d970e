/** A dropped model file: found among ComfyUI's by name and size, and selected. */

import { frontend } from "./frontend.mjs";
import { LOADER_FOR, firstWidget, slots } from "./loaders.mjs";
import { t } from "./text.mjs";

const MOST_NAMES = 20000;
const LONGEST_NAME = 500;
const LONGEST_HEADER = 64 * 1024 ** 2;

/** The names of a safetensors file's tensors, from its header; none where it has no such header. */
async function tensors(file) {
  try {
    const length = new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true);
    if (length > LONGEST_HEADER || length > file.size) {
      return [];
    }
    const header = JSON.parse(await file.slice(8, 8 + Number(length)).text());
    return Object.keys(header)
      .filter((name) => name !== "__metadata__" && name.length <= LONGEST_NAME)
      .slice(0, MOST_NAMES);
  } catch {
    return [];
  }
}

const find = async (file) =>
  frontend.ask("match", { name: file.name, size: file.size, tensors: await tensors(file) });

const folderOf = (source) => source.split("/", 1)[0];

/** Says where a file belongs that ComfyUI does not see. */
function tellWhere(file, found) {
  if (found.other_size.length) {
    const values = { file: file.name, found: found.other_size.join(", ") };
    frontend.toast("warn", t("dropOtherSizeTitle"), t("dropOtherSize", values), 12000);
    return;
  }
  const folder = found.folder || found.folders.join(t("or"));
  const kind = found.kind ? t(`kind_${found.kind}`) : t("kind_unknown");
  const values = { file: file.name, folder, kind };
  frontend.toast("warn", t("dropUnseenTitle"), t("dropUnseen", values), 12000);
}

async function select(node, slot, file) {
  const found = await find(file);
  const fits = found.candidates.find((c) => !slot.folder || folderOf(c) === slot.folder);
  if (!fits && found.candidates.length) {
    const values = { found: found.candidates[0], folder: slot.folder };
    frontend.toast("warn", t("dropElsewhereTitle"), t("dropElsewhere", values), 12000);
  } else if (!fits) {
    tellWhere(file, found);
  } else {
    const value = slot.folder ? fits.slice(slot.folder.length + 1) : fits;
    if (!frontend.setWidget(node, slot.widget, value)) {
      await frontend.refresh(); // it came after the page was opened
      if (!frontend.setWidget(node, slot.widget, value)) {
        frontend.toast("warn", t("dropUnlistedTitle"), t("dropUnlisted", { file: fits }), 12000);
      }
    }
  }
}

/** Files dropped on a node: the first for the widget below the pointer, the others for the next. */
export async function dropOnNode(node, files, widget) {
  const all = slots(node);
  const first = Math.max(all.findIndex((slot) => slot.widget === widget), 0);
  try {
    for (const [index, slot] of all.slice(first, first + files.length).entries()) {
      await select(node, slot, files[index]);
    }
    frontend.changed();
  } catch (error) {
    frontend.toast("error", t("dropFailed"), error.message);
  }
}

/** A file dropped beside nodes, without a workflow in it: a loader with it, if ComfyUI sees it. */
export async function dropOnCanvas(file, position) {
  try {
    const found = await find(file);
    const source = found.candidates[0];
    if (!source) {
      tellWhere(file, found);
      return;
    }
    const { stock } = await frontend.ask("file", { source });
    const kind = LOADER_FOR[folderOf(source)][stock ? 0 : 1];
    const name = source.slice(folderOf(source).length + 1);
    if (!frontend.choices(kind, firstWidget(kind)).includes(name)) {
      await frontend.refresh(); // it came after the page was opened
    }
    await frontend.change(() => {
      const node = frontend.insert(kind, { at: position });
      frontend.setWidget(node, firstWidget(kind), name);
    });
  } catch (error) {
    frontend.toast("error", t("dropFailed"), error.message);
  }
}
