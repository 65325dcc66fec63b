/** What came over links to the widgets of a node, which the editor does not know: the node tells it with each run. */

import { after } from './after.js'

/** Keeps what each run of nodes of this type tells, and does `redraw` for the node. */
export function rememberRuns(nodeType, redraw) {
  after(nodeType.prototype, 'onExecuted', function (output) {
    const [inputs] = output?.inputs_of_run ?? []
    if (inputs === undefined) return
    this.modulationGuidanceRun = JSON.parse(inputs)
    redraw(this)
  })
}

/** The node's inputs by name: what its widgets say, or what came over a link in the last run. */
export function inputsOf(node) {
  const values = Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]))
  for (const name of linkedWidgets(node)) values[name] = node.modulationGuidanceRun?.[name] ?? values[name]
  return values
}

/** Of those inputs whose value comes over a link and is not known yet, the ids, which are the same in every language. */
export function unknownLinks(node) {
  return linkedWidgets(node).filter((name) => node.modulationGuidanceRun?.[name] === undefined)
}

/** What the node shows for these inputs, in the editor's language. */
export function labelsOf(node, names) {
  const inputs = names.map((name) => node.inputs.find((each) => each.widget?.name === name))
  return inputs.map((input) => input.label ?? input.localized_name ?? input.widget.name).join(', ')
}

function linkedWidgets(node) {
  return (node.inputs ?? []).filter((input, index) => input.widget && node.isInputConnected(index)).map((input) => input.widget.name)
}
