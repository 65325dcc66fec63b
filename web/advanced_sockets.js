/**
 * Folds advanced sockets away, as the editor does with advanced widgets; linked ones stay.
 *
 * In the editor only widgets can be advanced. Taking the socket off the node and putting it on again would move links of those behind it,
 * so it stays where it is and is not seen: in the old rendering it has its place out of sight, in the new one a rule hides it.
 */

import { addStyle } from './pack.js'

const OUT_OF_SIGHT = -1e6
const rules = addStyle('')
const hidden = new Map() // node -> the keys of its sockets in the new rendering's page

export function foldSockets(node, folds) {
  const keys = []
  for (const [index, input] of node.inputs.entries()) {
    if (input.widget || !isAdvanced(node, input)) continue
    if (folds && !node.isInputConnected(index)) {
      input.pos = [OUT_OF_SIGHT, OUT_OF_SIGHT]
      input.draw = () => {}
      keys.push(`${node.id}-in-${index}`)
    } else if (isAway(input)) {
      input.pos = undefined
      delete input.draw
    }
  }
  if (keys.length && node.graph) hidden.set(node, keys)
  else hidden.delete(node)
  const selectors = [...hidden.values()].flat().map((key) => `.lg-slot--input:has([data-slot-key="${key}"])`)
  rules.textContent = selectors.length ? `${selectors.join(', ')} { display: none }` : ''
}

/** How much less height a node needs, in rows, than the editor thinks. */
export function foldedRows({ inputs = [], outputs = [] }) {
  const sockets = inputs.filter(({ widget }) => !widget)
  const rows = (shown) => Math.max(shown.length, outputs.length, 1)
  return rows(sockets) - rows(sockets.filter((input) => !isAway(input)))
}

/** Where a socket is while it is folded is no place to be saved. */
export function forgetPlaces(saved) {
  for (const input of saved.inputs ?? []) if (isAway(input)) delete input.pos
}

export function isAdvanced(node, input) {
  const { required = {}, optional = {} } = node.constructor.nodeData.input ?? {}
  return !!{ ...required, ...optional }[input.name]?.[1]?.advanced
}

function isAway(input) {
  return input.pos?.[0] === OUT_OF_SIGHT
}
