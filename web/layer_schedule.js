/**
 * Shows the shape of a layer schedule on its node, live.
 *
 * What a node cannot know by itself comes with a run: Apply Modulation Guidance tells the depth of its model, which goes up the
 * link to the schedule's node, and the schedule's node tells the values that came to it over links.
 */

import { app } from '../../scripts/app.js'
import { after } from './after.js'
import { inputsOf, labelsOf, rememberRuns, unknownLinks } from './linked_widgets.js'
import { BOX_HEIGHT, ScheduleBars } from './schedule_bars.js'
import { ScheduleError, isDepth, largestLayer, weightsOf } from './schedule_weights.js'
import { texts } from './texts.js'

const TEXT = 'GuidanceLayerScheduleText'
const CURVE = 'GuidanceLayerScheduleCurve'
const SCHEDULE_NODES = ['GuidanceLayerSchedule', TEXT, CURVE]
const SOCKET = 'LAYER_SCHEDULE'
const WIDGET = 'shape'
const TYPICAL_DEPTH = 57 // FLUX.1
const DEPTH_PROPERTY = 'model_depth' // saved with the workflow, so that a loaded one is drawn as it was
const MARGIN = 10 // around a widget of this kind on the canvas

const words = texts()

app.registerExtension({
  name: 'ModulationGuidance.LayerSchedule',

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (SCHEDULE_NODES.includes(nodeData.name)) rememberRuns(nodeType, draw)
    const { required = {}, optional = {} } = nodeData.input ?? {}
    if (Object.values({ ...required, ...optional }).some(([type]) => type === SOCKET)) {
      after(nodeType.prototype, 'onExecuted', tellDepth)
    }
  },

  nodeCreated(node) {
    if (SCHEDULE_NODES.includes(node.comfyClass)) addShape(node)
  }
})

function addShape(node) {
  const bars = new ScheduleBars()
  const widget = node.addDOMWidget(WIDGET, 'modulation_guidance_shape', bars.element, {
    serialize: false, // not in the prompt
    hideOnZoom: false,
    hideInPanel: true, // the side panel would draw an empty row, and set the width of the bars on the node by its own
    margin: MARGIN,
    getMinHeight: () => BOX_HEIGHT + 2 * MARGIN,
    getMaxHeight: () => BOX_HEIGHT + 2 * MARGIN
  })
  widget.serialize = false // not in the workflow's widget values
  node.modulationGuidanceBars = bars
  if (node.comfyClass === CURVE) adviseOnCurve(bars)
  const redraw = () => draw(node)
  for (const each of node.widgets) if (each !== widget) after(each, 'callback', redraw)
  for (const event of ['onConfigure', 'onConnectionsChange', 'onWidgetChanged']) after(node, event, redraw)
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
  redraw()
}

/** The old rendering cannot edit a curve, and says no more than that. */
async function adviseOnCurve(bars) {
  const text = await words
  bars.adviseInOldRendering(text('editCurve', { node: LiteGraph.registered_node_types[TEXT].title }))
}

async function draw(node) {
  const text = await words
  const bars = node.modulationGuidanceBars
  const inputs = inputsOf(node)
  const saved = node.properties[DEPTH_PROPERTY]
  const known = isDepth(saved) ? saved : undefined
  try {
    const depth = known ?? Math.max(TYPICAL_DEPTH, largestLayer(node.comfyClass, inputs) + 1)
    const weights = weightsOf(node.comfyClass, inputs, depth)
    const guided = weights.slice(0, -1).filter(Boolean).length
    const linked = unknownLinks(node)
    bars.draw(weights, text('head'), [
      text('guided', { guided, depth }),
      ...(linked.length ? [text('linked', { names: labelsOf(node, linked) })] : known ? [] : [text('assumed')])
    ].join('\n'))
  } catch (error) {
    if (!(error instanceof ScheduleError)) throw error
    bars.refuse(text(error.key, error.values))
  }
  node.setDirtyCanvas?.(true)
}

function tellDepth(output) {
  const [depth] = output?.model_depth ?? []
  if (depth === undefined) return
  this.inputs.forEach((input, index) => {
    if (input.type !== SOCKET) return
    const schedule = sourceOf(this, index)
    if (!schedule?.modulationGuidanceBars) return
    schedule.properties[DEPTH_PROPERTY] = depth
    draw(schedule)
  })
}

/** The node whose output reaches an input, beyond reroute nodes. */
function sourceOf(node, index) {
  const source = node.getInputNode(index)
  return source?.isVirtualNode && source.inputs?.length ? sourceOf(source, 0) : source
}
