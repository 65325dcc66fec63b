/** A schedule's weights as bars: one a layer, the output head's apart at the right, crisp at every zoom. */

import { addStyle } from './pack.js'

const SVG = 'http://www.w3.org/2000/svg'
const COLORS = { positive: '#3b9eff', negative: '#f0803c', layer: 'currentColor' }
const HEIGHT = 100 // of the drawing in its own units; the page stretches it
export const BOX_HEIGHT = 112 // pixels

addStyle('[data-node-id] .modulation-guidance-old-rendering { display: none }')

export class ScheduleBars {
  constructor() {
    this.element = element('div', {
      boxSizing: 'border-box', width: '100%', height: `${BOX_HEIGHT}px`, minHeight: `${BOX_HEIGHT}px`, flexShrink: '0', display: 'flex', flexDirection: 'column', gap: '2px',
      padding: '6px 8px 4px', borderRadius: '6px', overflow: 'hidden', pointerEvents: 'none',
      background: 'var(--comfy-input-bg)', color: 'var(--input-text)', font: '10px Inter, system-ui, sans-serif'
    })
    this.element.classList.add('modulation-guidance-bars')
    this.drawing = document.createElementNS(SVG, 'svg')
    this.drawing.setAttribute('preserveAspectRatio', 'none')
    Object.assign(this.drawing.style, { flex: '1 1 0', height: '0', minHeight: '0', width: '100%', display: 'block' })
    this.axis = element('div', { display: 'flex', justifyContent: 'space-between', opacity: '0.65', lineHeight: '12px' })
    this.caption = element('div', { textAlign: 'center', lineHeight: '12px', height: '24px', whiteSpace: 'pre-line', overflow: 'hidden', flexShrink: '0' })
    this.element.append(this.drawing, this.axis, this.caption)
  }

  /** Adds a sentence below all others for the old rendering alone, where nothing of a node is in the page but such boxes. */
  adviseInOldRendering(sentence) {
    const advice = element('div', { textAlign: 'center', lineHeight: '12px', flexShrink: '0' })
    advice.classList.add('modulation-guidance-old-rendering')
    advice.textContent = sentence
    this.element.append(advice)
  }

  /** @param {number[]} weights one per layer, and last the head's. @param {string} head what the head is called */
  draw(weights, head, caption) {
    const depth = weights.length - 1
    const top = Math.max(1, ...weights)
    const bottom = Math.min(0, ...weights)
    const y = (weight) => ((top - weight) / (top - bottom)) * HEIGHT
    const columns = weights.map((weight, layer) => ({ weight, x: layer < depth ? layer : depth + 1 }))
    this.drawing.setAttribute('viewBox', `0 0 ${depth + 2} ${HEIGHT}`)
    this.drawing.replaceChildren(
      ...columns.map(({ x }) => bar(x, 0, HEIGHT, COLORS.layer, 0.07)),
      ...columns.filter(({ weight }) => weight).map(({ weight, x }) =>
        bar(x, y(Math.max(weight, 0)), Math.abs(y(weight) - y(0)), weight > 0 ? COLORS.positive : COLORS.negative, 1)),
      zeroLine(y(0), depth + 2)
    )
    this.drawing.style.opacity = '1'
    this.axis.replaceChildren(text('0'), text(weights.at(-1) ? `${depth - 1} · ${head}` : `${depth - 1}`))
    this.say(caption, false)
  }

  /** A sentence in place of the caption, over the faded last drawing. */
  refuse(sentence) {
    this.drawing.style.opacity = '0.25'
    this.say(sentence, true)
  }

  say(sentence, wrong) {
    this.caption.textContent = sentence
    this.caption.style.color = wrong ? COLORS.negative : ''
  }
}

function element(tag, style) {
  const made = document.createElement(tag)
  Object.assign(made.style, style)
  return made
}

function text(words) {
  const made = document.createElement('span')
  made.textContent = words
  return made
}

function bar(layer, y, height, color, opacity) {
  return shape('rect', { x: layer + 0.1, y, width: 0.8, height, fill: color, 'fill-opacity': opacity })
}

function zeroLine(y, width) {
  const attributes = { x1: 0, x2: width, y1: y, y2: y, stroke: COLORS.layer, 'stroke-opacity': 0.5, 'vector-effect': 'non-scaling-stroke' }
  return shape('line', attributes)
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  return made
}
