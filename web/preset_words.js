/** Shows, in the empty text boxes of Modulation Guidance, the words that a run would take from the preset. */

import { app } from '../../scripts/app.js'
import { after } from './after.js'
import { texts } from './texts.js'

const NODE = 'ModulationGuidance'
const BOXES = ['positive', 'negative']

const words = texts()
const nodes = new Set()
// The new rendering makes the boxes itself, and anew whenever a node comes back into view; it puts no placeholder into them.
const rendered = new MutationObserver((changes) => {
  const hasBox = (each) => each.localName === 'textarea' || each.querySelector?.('textarea')
  if (changes.some(({ addedNodes }) => [...addedNodes].some(hasBox))) nodes.forEach(show)
})
let presets = {}

app.registerExtension({
  name: 'ModulationGuidance.PresetWords',

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name === NODE) presets = nodeData.input.required.preset[1].words
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const redraw = () => show(node)
    for (const name of ['preset', 'subject']) after(widget(node, name), 'callback', redraw)
    for (const event of ['onConfigure', 'onWidgetChanged', 'onConnectionsChange']) after(node, event, redraw)
    after(node, 'onAdded', () => watch(node))
    after(node, 'onRemoved', () => nodes.delete(node) && !nodes.size && rendered.disconnect())
    redraw()
  }
})

function watch(node) {
  if (!nodes.size) rendered.observe(document.body, { childList: true, subtree: true })
  nodes.add(node)
  show(node)
}

async function show(node) {
  const seen = wordsOf(node, await words)
  const boxes = document.querySelectorAll(`[data-node-id="${node.id}"] textarea`) // in the new rendering; in the order of the widgets
  BOXES.forEach((name, index) => {
    const { element, label } = widget(node, name)
    element.placeholder = `${label ?? name}: ${seen[name]}` // the old rendering writes no name beside it
    if (boxes[index]) boxes[index].placeholder = seen[name]
  })
}

/** As nodes/modulation_guidance.py takes them; what cannot run says what it lacks. */
function wordsOf(node, text) {
  const [name, subject] = ['preset', 'subject'].map((each) => widget(node, each).value)
  const preset = presets[name]
  if (!preset) return { positive: text('wanted'), negative: text('notWanted') }
  return { positive: positive(preset, subject.trim(), text), negative: preset.negative }
}

function positive({ positive, positive_with_subject: withSubject, example = '' }, subject, text) {
  if (subject && withSubject !== undefined) return withSubject.replaceAll('{subject}', () => subject)
  return positive ?? text('needsSubject', { example })
}

function widget(node, name) {
  return node.widgets.find((each) => each.name === name)
}
