// Makes a graph of a Template's plain form (graph.py) with the frontend's own means, and returns it
// as the frontend saves it, together with the numbers of its nodes.
async (template) => {
  const app = window.app
  const GAP_X = 60, GAP_Y = 64, TOP = 40
  app.graph.clear()
  app.graph.id = crypto.randomUUID() // the frontend remembers widgets' values by graph and node
  const made = {}
  let x = 0
  for (const column of template.columns) {
    let y = TOP
    for (const wanted of column.nodes) {
      const node = window.LiteGraph.createNode(wanted.kind)
      if (!node) throw new Error(`${template.name}: no node ${wanted.kind}`)
      app.graph.add(node)
      made[wanted.key] = node
      if (wanted.title) node.title = wanted.title
      if (wanted.kind === 'MarkdownNote') Object.assign(node, { color: '#432', bgcolor: '#653' })
      for (const [name, value] of Object.entries(wanted.widgets)) {
        const widget = node.widgets.find((w) => w.name === name) ?? (name === '' && node.widgets[0])
        if (!widget) throw new Error(`${template.name}: ${wanted.kind} has no ${name}`)
        widget.value = value
        const set = JSON.stringify(widget.value) === JSON.stringify(value)
        if (!set) throw new Error(`${template.name}: ${wanted.kind}.${name} is not ${value}`)
      }
      const height = Math.max(node.computeSize([column.width, 0])[1], wanted.height)
      node.pos = [x, y]
      node.setSize([column.width, height])
      y += height + GAP_Y
    }
    x += column.width + GAP_X
  }
  for (const { nodes } of template.columns) {
    for (const wanted of nodes) {
      for (const [input, source] of Object.entries(wanted.links)) {
        const [key, slot] = source.split('.')
        const index = made[wanted.key].inputs.findIndex((i) => i.name === input)
        const link = made[key]?.connect(Number(slot ?? 0), made[wanted.key], index)
        if (!link) throw new Error(`${template.name}: ${source} does not fit ${wanted.key}.${input}`)
      }
    }
  }
  const { workflow } = await app.graphToPrompt()
  const numbers = Object.fromEntries(Object.entries(made).map(([key, node]) => [key, node.id]))
  return { workflow, numbers }
}
