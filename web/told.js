/** Keeps on a node what it told of a run (nodes/telling.py): newer editors take such a text away when the run ends. */

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { isOurs } from './pack.js'

const WIDGET = '$$node-text-preview' // the editor's own, which comes with the text
const AFTER = ['execution_success', 'execution_error', 'execution_interrupted', 'status'] // any of which can end a run

const told = new Map() // number of a node in the prompt -> the node, and its text

app.registerExtension({
  name: 'ModulationGuidance.Told',

  setup() {
    api.addEventListener('progress_text', ({ detail: { nodeId, text } }) => {
      const node = nodeOf(nodeId)
      if (isOurs(node?.constructor.nodeData)) told.set(nodeId, { node, text })
    })
    for (const event of AFTER) api.addEventListener(event, () => setTimeout(tellAgain))
  }
})

function tellAgain() {
  for (const [nodeId, { node, text }] of told) {
    if (nodeOf(nodeId) !== node) told.delete(nodeId) // another workflow's
    else if (!node.widgets?.some(({ name }) => name === WIDGET)) api.dispatchCustomEvent('progress_text', { nodeId, text })
  }
}

/** The node of that number in the open workflow; "12:5" is number 5 in the subgraph of 12. */
function nodeOf(number) {
  let [node, graph] = [undefined, app.graph]
  for (const id of String(number).split(':')) {
    node = graph?.getNodeById(id)
    graph = node?.subgraph
  }
  return node
}
