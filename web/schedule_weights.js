/** What each layer of a model weighs under a schedule, for the drawing on the node; the run itself uses model_patches/schedules.py. */

// As model_patches/schedules.py has them. What is drawn layer by layer must end somewhere, whatever a saved workflow says.
const LAST_LAYER = 1000
const LARGEST_WEIGHT = 100
const LONGEST_TEXT = 100_000 // characters

/** A schedule that cannot be drawn: `key` is a text of texts.js, `values` go into it. */
export class ScheduleError extends Error {
  constructor(key, values = {}) {
    super(key)
    this.key = key
    this.values = values
  }
}

/**
 * @param {string} type the node's id
 * @param {object} inputs the node's inputs by name
 * @param {number} depth how many layers the model has
 * @returns {number[]} one weight per layer, and last the output head's
 * @throws {ScheduleError} where the schedule cannot be
 */
export function weightsOf(type, inputs, depth) {
  const weights = [...SCHEDULES[type].weights(inputs, depth), Number(inputs.final_layer)]
  if (weights.some((weight) => !(Math.abs(weight) <= LARGEST_WEIGHT))) throw new ScheduleError('weight', { most: LARGEST_WEIGHT })
  return weights
}

/** The highest layer a node's inputs name, -1 if they name none. Throws a ScheduleError where no model has as many. */
export function largestLayer(type, inputs) {
  const layer = SCHEDULES[type].largest(inputs)
  checkPossible(layer)
  return layer
}

/** Whether a saved number can be that of a model's layers. */
export function isDepth(depth) {
  return Number.isInteger(depth) && depth >= 1 && depth <= LAST_LAYER + 1
}

const SCHEDULES = {
  GuidanceLayerSchedule: {
    largest: ({ start_layer, end_layer }) => Math.max(start_layer, end_layer),
    weights({ start_layer, end_layer, taper_layers, taper_scale }, depth) {
      checkDepth(Math.max(start_layer, end_layer), depth)
      const end = end_layer === -1 ? depth - 1 : end_layer
      if (start_layer > end) throw new ScheduleError('pastEnd', { start: start_layer, end })
      return layers(depth, (layer) => (layer < start_layer || layer > end ? 0 : layer > end - taper_layers ? taper_scale : 1))
    }
  },
  GuidanceLayerScheduleText: {
    largest: ({ layers: text }) => Math.max(...parseRanges(text).map(({ last }) => last)),
    weights({ layers: text }, depth) {
      const ranges = parseRanges(text)
      checkDepth(Math.max(...ranges.map(({ last }) => last)), depth)
      return layers(depth, (layer) => ranges.find(({ first, last }) => first <= layer && layer <= last)?.weight ?? 0)
    }
  },
  GuidanceLayerScheduleCurve: {
    largest: () => -1,
    weights({ curve }, depth) {
      const { points, interpolation } = curve
      if (!points.length) throw new ScheduleError('noPoints')
      const at = (interpolation === 'linear' ? linear : monotoneCubic)([...points].sort((one, other) => one[0] - other[0]))
      return layers(depth, (layer) => at(layer / Math.max(depth - 1, 1)))
    }
  }
}

function layers(depth, weight) {
  return Array.from({ length: depth }, (_, layer) => weight(layer))
}

function checkPossible(layer) {
  if (!(layer <= LAST_LAYER)) throw new ScheduleError('tooHigh', { last: LAST_LAYER })
}

function checkDepth(layer, depth) {
  if (layer >= depth) throw new ScheduleError('beyond', { layer, depth })
}

/** "5-18: 1, 56: 0" as [{ first: 5, last: 18, weight: 1 }, { first: 56, last: 56, weight: 0 }]. */
function parseRanges(text) {
  if (text.length > LONGEST_TEXT) throw new ScheduleError('tooLong', { most: LONGEST_TEXT })
  const ranges = []
  for (const part of text.split(/[,;\n]/).map((each) => each.trim()).filter(Boolean)) {
    const entry = /^(\d+)\s*(?:-\s*(\d+)\s*)?:\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)$/i.exec(part)
    if (!entry) throw new ScheduleError('unreadable', { part: shortened(part) })
    const [first, last] = [Number(entry[1]), Number(entry[2] ?? entry[1])]
    checkPossible(Math.max(first, last))
    if (last < first) throw new ScheduleError('unreadable', { part: shortened(part) })
    if (ranges.some((other) => first <= other.last && other.first <= last)) throw new ScheduleError('twice', { part: shortened(part) })
    ranges.push({ first, last, weight: Number(entry[3]) })
  }
  if (!ranges.length) throw new ScheduleError('noLayers')
  return ranges
}

function shortened(part) {
  return part.length > 60 ? `${part.slice(0, 60)}…` : part
}

/** Both curves hold their first and last value outside their points, as the host's (comfy_api's curve_types.py). */
function linear(points) {
  return between(points, ([x0, y0], [x1, y1], x) => y0 + ((y1 - y0) * (x - x0)) / (x1 - x0))
}

function monotoneCubic(points) {
  const slopes = monotoneSlopes(points)
  return between(points, ([x0, y0], [x1, y1], x, index) => {
    const width = x1 - x0
    const t = (x - x0) / width
    const [m0, m1] = [slopes[index] * width, slopes[index + 1] * width]
    return y0 + t * (m0 + t * (3 * (y1 - y0) - 2 * m0 - m1 + t * (m0 + m1 - 2 * (y1 - y0))))
  })
}

function between(points, value) {
  return (x) => {
    if (x <= points[0][0]) return points[0][1]
    if (x >= points.at(-1)[0]) return points.at(-1)[1]
    const index = points.findLastIndex(([left]) => left <= x)
    return value(points[index], points[index + 1], x, index)
  }
}

/** Fritsch and Carlson's slopes, with which the cubic between two points never leaves their range. */
function monotoneSlopes(points) {
  const secants = points.slice(1).map(([x, y], index) => (x === points[index][0] ? 0 : (y - points[index][1]) / (x - points[index][0])))
  const slopes = points.map((_, index) => {
    const [before, after] = [secants[index - 1] ?? secants[index] ?? 0, secants[index] ?? secants[index - 1] ?? 0]
    return before * after <= 0 ? 0 : (before + after) / 2
  })
  secants.forEach((secant, index) => {
    if (secant === 0) {
      slopes[index] = slopes[index + 1] = 0
      return
    }
    const length = Math.hypot(slopes[index], slopes[index + 1]) / Math.abs(secant)
    if (length > 3) {
      slopes[index] *= 3 / length
      slopes[index + 1] *= 3 / length
    }
  })
  return slopes
}
