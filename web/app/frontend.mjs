/**
 * The adapter: every call into ComfyUI's frontend is made here, and nowhere else.
 *
 * Written for the frontends that ComfyUI 0.29 and 0.33 pin (1.47 and 1.49). Nodes are handed out
 * as they are; what is read of them elsewhere is `id`, `type`, `title`, `properties`, `widgets`.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const PREFIX = "Roundsmith";
const PANEL = "roundsmith";

/** Where the pack's files lie, whatever its folder is called. */
export const base = new URL("../", import.meta.url);

function graphs(graph = app.rootGraph ?? app.graph) {
  const inside = [...(graph?.nodes ?? [])].flatMap((n) => (n.subgraph ? graphs(n.subgraph) : []));
  return graph ? [graph, ...inside] : [];
}

export const frontend = {
  /**
   * Registers one extension made of several features, each an object with any of ComfyUI's hooks.
   * `nodeCreated`, `loadedGraphNode`, `setup` run for each feature; menus are joined.
   */
  register(features) {
    const each = (hook) => async (...args) => {
      for (const feature of features) {
        await feature[hook]?.(...args);
      }
    };
    const joined = (hook) => (...args) => features.flatMap((f) => f[hook]?.(...args) ?? []);
    app.registerExtension({
      name: PREFIX,
      settings: features.flatMap((feature) => feature.settings ?? []),
      commands: features.flatMap((feature) => feature.commands ?? []),
      setup: each("setup"),
      nodeCreated: each("nodeCreated"),
      loadedGraphNode: each("loadedGraphNode"),
      afterConfigureGraph: each("afterConfigureGraph"),
      getNodeMenuItems: joined("getNodeMenuItems"),
    });
    const style = document.createElement("link");
    Object.assign(style, { rel: "stylesheet", href: new URL("roundsmith.css", base).href });
    document.head.append(style);
  },

  /** Whether a node is one of the pack's. */
  ours: (node) => String(node?.comfyClass ?? node?.type).startsWith(PREFIX),

  /** The id of a node's class. */
  kind: (node) => String(node?.comfyClass ?? node?.type),

  /** All nodes, those in subgraphs too. */
  nodes: () => graphs().flatMap((graph) => [...graph.nodes]),

  /** The node an execution id (`3`, or `7:3` inside a subgraph) speaks of, or undefined. */
  nodeOf(id) {
    let graph = app.rootGraph ?? app.graph;
    let node;
    for (const part of String(id).split(":")) {
      node = graph?.getNodeById(Number.isNaN(Number(part)) ? part : Number(part));
      graph = node?.subgraph;
    }
    return node ?? undefined;
  },

  /** A widget of a node by its name. */
  widget: (node, name) => node.widgets?.find((widget) => widget.name === name),

  /** Sets a widget as if a person had; false where there is none or it lacks that choice. */
  setWidget(node, name, value) {
    const widget = this.widget(node, name);
    const choices = widget?.options?.values;
    if (!widget || (Array.isArray(choices) && !choices.includes(value))) {
      return false;
    }
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    this.redraw(node);
    return true;
  },

  /**
   * Puts an element below a node's widgets, once; nothing of it is saved or sent.
   * @param {() => number} height what it needs at least, in pixels
   */
  addPanel(node, element, height, name = PANEL) {
    if (this.widget(node, name)) {
      return;
    }
    const widget = node.addDOMWidget(name, PANEL, element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: height,
      getMaxHeight: height,
      getValue: () => "",
      setValue: () => {},
    });
    widget.serialize = false;
    this.fit(node);
  },

  /** Sets a number as it is, not rounded to the widget's step. */
  setNumber(node, name, value) {
    if (this.setWidget(node, name, value)) {
      this.widget(node, name).value = value;
    }
  },

  /** Makes a node as wide as something in it wants to be. */
  widen(node, width) {
    node.setSize([Math.max(node.size[0], width), node.size[1]]);
    this.fit(node);
  },

  /** A style sheet of the pack's; settles when it is there. */
  style(path) {
    const link = document.createElement("link");
    Object.assign(link, { rel: "stylesheet", href: new URL(path, base).href });
    const loaded = new Promise((resolve) => (link.onload = link.onerror = resolve));
    document.head.append(link);
    return loaded;
  },

  /** A button below a node's widgets; nothing of it is saved or sent. */
  addButton(node, name, label, callback) {
    const button = node.addWidget("button", name, null, callback, { serialize: false });
    Object.assign(button, { serialize: false, label });
  },

  /** The values of a node's widgets by name, without what only shows something. */
  values: (node) =>
    Object.fromEntries(
      (node.widgets ?? []).filter((w) => w.serialize !== false).map((w) => [w.name, w.value]),
    ),

  /** Shows a node's advanced widgets. */
  showAdvanced(node) {
    node.showAdvanced = true;
    this.fit(node);
  },

  /** What feeds a node's inputs: nodes, those of inputs of some types only where given. */
  feeding(node, types) {
    const inputs = (node.inputs ?? []).filter((input) => !types || types.includes(input.type));
    const links = inputs.map((input) => node.graph?.getLink(input.link)).filter(Boolean);
    return links.map((link) => node.graph.getNodeById(link.origin_id)).filter(Boolean);
  },

  /** What a node's outputs feed: nodes. */
  fed(node) {
    const ids = (node.outputs ?? []).flatMap((output) => [...(output.links ?? [])]);
    const links = ids.map((id) => node.graph?.getLink(id)).filter(Boolean);
    return links.map((link) => node.graph.getNodeById(link.target_id)).filter(Boolean);
  },

  /** Grows a node to what its widgets need. */
  fit(node) {
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    this.redraw(node);
  },

  /** Tells the frontend that a node's properties changed: its draft of the workflow is saved. */
  changed() {
    const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  },

  redraw: (node) => node.setDirtyCanvas?.(true, true),

  /** Calls back for a node's results, after whatever else does. */
  onExecuted(node, callback) {
    const before = node.onExecuted;
    node.onExecuted = function executed(output) {
      before?.call(this, output);
      callback(output);
    };
  },

  /** Listens to a message of the server: ComfyUI's own, or ours. */
  on: (event, callback) => api.addEventListener(event, ({ detail }) => callback(detail)),

  /** The answer of one of our routes as JSON. Throws an Error with the server's words. */
  async ask(route, body) {
    const options = body === undefined ? {} : {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    };
    const response = await api.fetchApi(`/roundsmith/${route}`, options);
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      throw new Error(answer.error ?? `${response.status} ${response.statusText}`);
    }
    return answer;
  },

  /** All packs' translations by language, as the server has them. */
  translations: async () => (await api.fetchApi("/i18n")).json(),

  /** A setting's value. */
  setting: (id) => app.extensionManager.setting.get(id),

  /** A short message in the corner. `severity`: info, success, warn, error. */
  toast: (severity, summary, detail, life = 6000) =>
    app.extensionManager.toast.add({ severity, summary, detail, life }),

  /** Asks yes or no. */
  confirm: (title, message) => app.extensionManager.dialog.confirm({ title, message }),
};
