/**
 * The browser's part of the pack, kept out of the page's way: ComfyUI waits for this file before
 * it asks the server for its nodes, so the rest loads while that answer is made. All of it is
 * asked for at once, not one import after the other, and it is there before a node is.
 */

const START = [
  ...["badge", "budget", "defaults", "dom", "drop", "features", "format", "frontend", "loaders"],
  ...["long_runs", "menus", "panel", "picking", "progress", "results", "summary", "text"],
];
for (const name of START) {
  const href = new URL(`app/${name}.mjs`, import.meta.url).href;
  const link = document.createElement("link");
  document.head.append(Object.assign(link, { rel: "modulepreload", href }));
}

async function start() {
  const loaded = [import("./app/frontend.mjs"), import("./app/features.mjs")];
  const [{ frontend }, { features }] = await Promise.all(loaded);
  frontend.register(features);
}

const started = start();
// The one call that is not the adapter's; importing scripts/app.js would be one more wait.
window.comfyAPI.app.app.registerExtension({
  name: "roundsmith.start",
  addCustomNodeDefs: () => started,
});
