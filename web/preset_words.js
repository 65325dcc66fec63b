/** Shows, in the empty text boxes of Modulation Guidance, the words that a run would take from the preset. */

import { app } from '../../scripts/app.js'
import { after } from './after.js'
import { inputsOf, labelsOf, rememberRuns, unknownLinks } from './linked_widgets.js'
import { boxesOf, whenRendered } from './text_boxes.js'
import { texts } from './texts.js'

const NODE = 'ModulationGuidance'
const BOXES = ['positive', 'negative']
const TOLD = ['preset', 'subject'] // what their words are made of

const words = texts()
let presets = {}

app.registerExtension({
  name: 'ModulationGuidance.PresetWords',

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return
    presets = nodeData.input.required.preset[1].words
    rememberRuns(nodeType, show)
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const redraw = () => show(node)
    for (const name of TOLD) after(widget(node, name), 'callback', redraw)
    for (const event of ['onConfigure', 'onWidgetChanged', 'onConnectionsChange']) after(node, event, redraw)
    whenRendered(node, redraw)
    redraw()
  }
})

async function show(node) {
  const seen = wordsOf(node, await words)
  for (const name of BOXES) for (const box of boxesOf(node, widget(node, name))) box.placeholder = seen[name]
}

/** As nodes/modulation_guidance.py takes them; what cannot run says what it lacks. */
function wordsOf(node, text) {
  const unknown = unknownLinks(node).filter((name) => TOLD.includes(name))
  const linked = text('linked', { names: labelsOf(node, unknown) })
  if (unknown.includes('preset')) return { positive: linked, negative: linked }
  const { preset: name, subject } = inputsOf(node)
  const preset = presets[name]
  if (!preset) return { positive: text('wanted'), negative: text('notWanted') }
  const asked = preset.positive_with_subject !== undefined && unknown.includes('subject')
  return { positive: asked ? linked : positive(preset, subject.trim(), text), negative: preset.negative }
}

function positive({ positive, positive_with_subject: withSubject, example = '' }, subject, text) {
  if (subject && withSubject !== undefined) return withSubject.replaceAll('{subject}', () => subject)
  return positive ?? text('needsSubject', { example })
}

function widget(node, name) {
  return node.widgets.find((each) => each.name === name)
}
