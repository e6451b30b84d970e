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
const MARGIN = 8; // px around a panel on a node

/** Where the pack's files lie, whatever its folder is called. */
export const base = new URL("../", import.meta.url);

const { LiteGraph, LGraphBadge } = window;
const GAP = 40;
let loading = 0;
const fitted = new WeakMap(); // the height that each node was last grown to

/** Whether two nodes, titles included, do not touch. */
function apart(a, b) {
  const [ax, ay, aw, ah] = [a.pos[0], a.pos[1] - 30, a.size[0], a.size[1] + 30];
  const [bx, by, bw, bh] = [b.pos[0], b.pos[1] - 30, b.size[0], b.size[1] + 30];
  return ax >= bx + bw || bx >= ax + aw || ay >= by + bh || by >= ay + ah;
}

function graphs(graph = app.rootGraph ?? app.graph) {
  const inside = [...(graph?.nodes ?? [])].flatMap((n) => (n.subgraph ? graphs(n.subgraph) : []));
  return graph ? [graph, ...inside] : [];
}

export const frontend = {
  /**
   * Registers one extension made of several features, each an object with any of ComfyUI's hooks.
   * `nodeCreated`, `loadedGraphNode`, `setup` run for each feature at once; menus are joined.
   */
  register(features) {
    const each = (hook) => (...args) => Promise.all(features.map((f) => f[hook]?.(...args)));
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
      refreshComboInNodes: each("refreshComboInNodes"),
    });
    const load = app.loadApiJson;
    app.loadApiJson = function loaded(...args) {
      loading += 1; // its nodes get their values without being configured
      const done = () => (loading -= 1);
      const loads = load.apply(this, args); // at once in 1.47, later in 1.49
      Promise.resolve(loads).then(done, done);
      return loads;
    };
    this.style("roundsmith.css");
    this.style("app/results.css");
  },

  /** Adds a style sheet of the pack's; settles when it is there. */
  style(path) {
    const link = document.createElement("link");
    Object.assign(link, { rel: "stylesheet", href: new URL(path, base).href });
    const loaded = new Promise((resolve) => (link.onload = link.onerror = resolve));
    document.head.append(link);
    return loaded;
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

  /** Whether a widget's value is among its choices. */
  listed(widget) {
    const choices = widget.options?.values;
    return !Array.isArray(choices) || choices.includes(widget.value);
  },

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
  addPanel(node, element, height) {
    if (this.widget(node, PANEL)) {
      return;
    }
    const widget = node.addDOMWidget(PANEL, PANEL, element, {
      serialize: false,
      hideOnZoom: false,
      margin: MARGIN,
      getMinHeight: () => height() + 2 * MARGIN,
      getMaxHeight: () => height() + 2 * MARGIN,
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
    const found = (node.outputs ?? []).flatMap((_, output) => this.consumers(node, output));
    return found.map((consumer) => consumer.node).filter(Boolean);
  },

  /** Grows a node to what its widgets need; it shrinks again where nobody made it larger. */
  fit(node) {
    const [width, height] = node.computeSize();
    const own = node.size[1] > (fitted.get(node) ?? 0) + 1 ? node.size[1] : 0;
    fitted.set(node, height);
    node.setSize([Math.max(node.size[0], width), Math.max(own, height)]);
    this.redraw(node);
  },

  /** Tells the frontend that a node's properties changed: its draft of the workflow is saved. */
  changed() {
    const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  },

  redraw: (node) => node.setDirtyCanvas?.(true, true),

  /** The title of a class of nodes, as the menus have it. */
  titleOf: (kind) => LiteGraph.registered_node_types[kind]?.title ?? kind,

  /** What a combo of a class of nodes offers. */
  choices(kind, input) {
    const inputs = LiteGraph.registered_node_types[kind]?.nodeData?.input ?? {};
    const [type, options] = inputs.required?.[input] ?? inputs.optional?.[input] ?? [];
    return Array.isArray(type) ? type : (options?.options ?? []).map((o) => o.key ?? o);
  },

  /**
   * Calls back for a node that a person made, once it is there: not for one that is loaded, pasted
   * or brought back by undo, whose values are its own.
   */
  whenNew(node, callback) {
    let loaded = app.configuringGraph || loading > 0;
    const before = node.onConfigure;
    node.onConfigure = function configured(...args) {
      loaded = true;
      return before?.apply(this, args);
    };
    queueMicrotask(() => {
      if (!loaded && node.graph) {
        callback(node);
      }
    });
  },

  /** Calls back when a widget of a node has a new value. */
  onWidgets(node, callback) {
    const seen = new WeakSet();
    const watch = () => {
      for (const widget of node.widgets ?? []) {
        if (!seen.has(widget)) {
          seen.add(widget);
          const before = widget.callback;
          widget.callback = function changed(...args) {
            const result = before?.apply(this, args);
            watch(); // a dynamic combo may have brought others
            callback();
            return result;
          };
        }
      }
    };
    watch();
  },

  /** Whether nodes are drawn as elements (Nodes 2.0), not on the canvas. */
  vueNodes: () => LiteGraph.vueNodesMode,

  /** Calls back when that changes. */
  onVueNodes: (callback) =>
    app.ui.settings.addEventListener("Comfy.VueNodes.Enabled.change", () => setTimeout(callback)),

  /** A badge above a node: `{text, warn}`, or null for none. Nothing of it is saved. */
  setBadge(node, said) {
    const others = (node.badges ?? []).filter((badge) => !badge.roundsmith);
    const colors = said?.warn ? { fgColor: "#fff", bgColor: "#a5470b" } : { bgColor: "#2b3a44" };
    const made = said && new LGraphBadge({ text: said.text, height: 18, ...colors });
    const none = new LGraphBadge({ text: "" });
    const own = () => (LiteGraph.vueNodesMode ? none : made);
    own.roundsmith = true;
    node.badges = made ? [...others, own] : others; // a new array: Vue sees it
    this.redraw(node);
  },

  /**
   * Takes files that fall on a node and that `accepts` knows by their names; others go on to
   * whatever takes them otherwise. `callback(files, widget)`: the widget below the pointer, if any.
   */
  onDrop(node, accepts, callback) {
    const { onDragOver, onDragDrop } = node;
    node.onDragOver = function over(event) {
      const items = [...(event.dataTransfer?.items ?? [])];
      // only now and then has a browser a type for these, and names come with the drop
      const some = items.some((i) => i.kind === "file" && !/^(image|audio|video|text)/.test(i.type));
      return some || (onDragOver?.call(this, event) ?? false);
    };
    node.onDragDrop = async function dropped(event) {
      const files = [...(event.dataTransfer?.files ?? [])].filter(accepts);
      if (!files.length) {
        return (await onDragDrop?.call(this, event)) ?? false;
      }
      await callback(files, node.getWidgetOnPos?.(event.canvasX, event.canvasY, true)?.name);
      return true;
    };
  },

  /** Is asked first about a dropped file that holds no workflow: true where it takes it. */
  onUnknownFile(callback) {
    const before = app.showErrorOnFileLoad;
    app.showErrorOnFileLoad = function unknown(file) {
      if (!callback(file, [...app.canvas.graph_mouse])) {
        before?.call(this, file);
      }
    };
  },

  /** Is asked before a run with its prompt and the nodes it is for: false stops it. */
  beforeRun(callback) {
    const queue = app.queuePrompt;
    app.queuePrompt = async function asked(number, count, nodes, ...rest) {
      const only = Array.isArray(nodes) ? nodes : nodes?.queueNodeIds; // 1.47, 1.49
      return (await callback(only ?? [])) ? queue.call(this, number, count, nodes, ...rest) : false;
    };
  },

  /** The prompt that Run would queue: nodes by id. */
  prompt: async () => (await app.graphToPrompt()).output,

  /** Asks the server for the lists of files again, as R does. */
  refresh: () => app.reloadNodeDefs?.() ?? app.refreshComboInNodes(),

  /** Changes the graph in one step of undo, with the sizes that the browser gives new nodes. */
  async change(work) {
    this.changed(); // what was before is a step of its own
    app.canvas.emitBeforeChange();
    try {
      work();
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      await new Promise((done) => setTimeout(done, 50));
    } finally {
      app.canvas.emitAfterChange();
    }
  },

  /**
   * A new node in the graph that is shown. `at`: there; `beside` a node: right of it; `below`: under
   * it. Where others are, the next free place down.
   */
  insert(kind, { at, beside, below }) {
    const node = LiteGraph.createNode(kind);
    const graph = beside?.graph ?? app.canvas.graph;
    node.pos = at ? [...at] : [beside.pos[0] + (below ? 0 : beside.size[0] + GAP), beside.pos[1]];
    graph.add(node);
    const free = () => graph.nodes.every((other) => other === node || apart(node, other));
    while (!free()) {
      node.pos[1] += GAP;
    }
    node.pos = [...node.pos];
    return node;
  },

  /** Left of a node and below all of its graph. */
  below(node) {
    const bottoms = node.graph.nodes.map((other) => other.pos[1] + other.size[1]);
    return [node.pos[0], Math.max(...bottoms) + 2 * GAP];
  },

  /** The index of a node's output of a type, or -1. */
  output: (node, type) => (node.outputs ?? []).findIndex((output) => output.type === type),

  /** How many outputs a node has. */
  outputs: (node) => node.outputs?.length ?? 0,

  /** What an output feeds: `{node, input, reroute}`; the node is missing where it leaves a subgraph. */
  consumers(node, output) {
    const links = [...(node.outputs?.[output]?.links ?? [])].map((id) => node.graph?.getLink(id));
    return links.filter(Boolean).map((link) => ({
      node: node.graph.getNodeById(link.target_id),
      input: link.target_slot,
      reroute: link.parentId,
    }));
  },

  /** What feeds an input: `{node, output}`, or undefined. */
  source(node, name) {
    const slot = node.findInputSlot(name);
    const link = slot < 0 ? undefined : node.graph.getLink(node.inputs[slot].link);
    const from = link && node.graph.getNodeById(link.origin_id);
    return from ? { node: from, output: link.origin_slot } : undefined;
  },

  /** Connects an output to an input, which is an index or a name. */
  connect(from, output, to, input) {
    const slot = typeof input === "number" ? input : to.findInputSlot(input);
    return slot < 0 ? null : from.connect(output, to, slot);
  },

  /** Connects what `source` found to an input. */
  link(source, to, input) {
    return source ? this.connect(source.node, source.output, to, input) : null;
  },

  /** Puts an output in the place of the one that feeds a consumer, along the same reroutes. */
  reconnect(from, output, { node, input, reroute }) {
    if (node) {
      from.connect(output, node, input, reroute);
    } else {
      from.graph.outputs?.[input]?.connect(from.outputs[output], from, reroute); // of a subgraph
    }
  },

  /** Selects nodes. */
  select: (nodes) => app.canvas.selectItems(nodes),

  /** Moves the view to what is selected. */
  showSelected: () => app.canvas.fitViewToSelectionAnimated?.(),

  /** Calls back for a node's results, after whatever else does. */
  onExecuted(node, callback) {
    const before = node.onExecuted;
    node.onExecuted = function executed(output) {
      before?.call(this, output);
      callback(output);
    };
  },

  /** Calls back when a node leaves its graph. */
  onRemoved(node, callback) {
    const before = node.onRemoved;
    node.onRemoved = function removed() {
      before?.call(this);
      callback();
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

  /** Adds a setting to ComfyUI's dialog. */
  addSetting: (setting) => app.ui.settings.addSetting(setting),

  /** A setting's value. */
  setting: (id) => app.extensionManager.setting.get(id),

  /** A short message in the corner. `severity`: info, success, warn, error. */
  toast: (severity, summary, detail, life = 6000) =>
    app.extensionManager.toast.add({ severity, summary, detail, life }),

  /** Asks yes or no; `itemList`: lines below the message. */
  confirm: (title, message, itemList = []) =>
    app.extensionManager.dialog.confirm({ title, message, itemList }),
};
