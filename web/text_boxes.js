/**
 * Names the text boxes of this pack's nodes in the old rendering, which writes nothing beside them, and shows in both renderings
 * where the text of a linked one comes from, in place of the one that the box would take without the link.
 */

import { app } from '../../scripts/app.js'
import { after } from './after.js'
import { addStyle, isOurs } from './pack.js'

const shown = new Map() // node -> what to do when its boxes are made anew
// The new rendering makes the boxes itself, and anew whenever a node comes back into view.
const rendered = new MutationObserver((changes) => {
  const hasBox = (each) => each.localName === 'textarea' || each.querySelector?.('textarea')
  if (changes.some(({ addedNodes }) => [...addedNodes].some(hasBox))) shown.forEach((all) => all.forEach((show) => show()))
})

addStyle(`
  .modulation-guidance-linked { color: transparent !important }
  [data-modulation-guidance-source]::after {
    content: attr(data-modulation-guidance-source); position: absolute; inset: 20px 12px auto; pointer-events: none; font-size: 12px; opacity: 0.7
  }
`)

app.registerExtension({
  name: 'ModulationGuidance.TextBoxes',

  nodeCreated(node) {
    if (!isOurs(node.constructor.nodeData)) return
    if (!textWidgets(node).length) return
    after(node, 'onDrawForeground', (context) => drawNames(context, node))
    const redraw = () => showSources(node)
    for (const event of ['onConfigure', 'onConnectionsChange']) after(node, event, redraw)
    whenRendered(node, redraw)
  }
})

/** Does `show` when the node comes into a graph and whenever the page makes text boxes. */
export function whenRendered(node, show) {
  after(node, 'onAdded', () => {
    if (!shown.size) rendered.observe(document.body, { childList: true, subtree: true })
    shown.set(node, [...(shown.get(node) ?? []), show])
    show()
  })
  after(node, 'onRemoved', () => {
    shown.delete(node)
    if (!shown.size) rendered.disconnect()
  })
}

/** The boxes of a widget that are in the page: the old rendering's, and where it is in use the new one's. */
export function boxesOf(node, widget) {
  const boxes = document.querySelectorAll(`[data-node-id="${node.id}"] textarea`)
  const widgets = textWidgets(node)
  // In the order of the widgets, but newer editors have none for a linked one.
  const shown = boxes.length < widgets.length ? widgets.filter((each) => !node.isInputConnected(indexOf(node, each))) : widgets
  const box = boxes[shown.indexOf(widget)]
  return box ? [widget.element, box] : [widget.element]
}

function textWidgets(node) {
  return (node.widgets ?? []).filter(({ element }) => element?.localName === 'textarea')
}

/** In the margin that the old rendering leaves above a box, or beside the socket of one that it hides because it is linked. */
function drawNames(context, node) {
  if (LiteGraph.vueNodesMode || node.collapsed || app.canvas.low_quality) return
  context.save()
  context.font = '10px Inter, sans-serif'
  context.textAlign = 'left'
  context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR
  for (const widget of textWidgets(node)) {
    const source = sourceOf(node, widget)
    const [x, y] = source ? [20, 13] : [widget.margin, 7]
    context.fillText([widget.label ?? widget.name, source].filter(Boolean).join(' '), x, widget.y + y)
  }
  context.restore()
}

function showSources(node) {
  for (const widget of textWidgets(node)) {
    const [, box] = boxesOf(node, widget)
    if (!box) continue
    const source = sourceOf(node, widget)
    box.classList.toggle('modulation-guidance-linked', !!source)
    if (source) box.parentElement.dataset.modulationGuidanceSource = source
    else delete box.parentElement.dataset.modulationGuidanceSource
  }
}

/** "← Guidance Preset: positive" for a linked widget. */
function sourceOf(node, widget) {
  const index = indexOf(node, widget)
  if (index < 0 || !node.isInputConnected(index)) return undefined
  const source = node.getInputNode(index)
  const output = source?.outputs[node.getInputLink(index).origin_slot]
  return source ? `← ${source.title}: ${output.label ?? output.localized_name ?? output.name}` : '←'
}

function indexOf(node, widget) {
  return node.inputs.findIndex((input) => input.widget?.name === widget.name)
}
