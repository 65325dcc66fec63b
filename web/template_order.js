/** Puts this pack's templates into the order in which to try them: the host lists files as the disk has them. */

import { api } from '../../scripts/api.js'
import { FOLDER } from './pack.js'

const FIRST = [
  'First steps (small world)', 'Modulation Guidance (one node)', 'Plain against guided', 'Sweep and grid', 'Inspect guidance',
  'Sweep, score, choose', 'Learn a direction', 'Distill a projection'
]

const { getWorkflowTemplates } = api

api.getWorkflowTemplates = async function () {
  const templates = await getWorkflowTemplates.call(this)
  templates[FOLDER]?.sort((one, other) => place(one) - place(other) || one.localeCompare(other))
  return templates
}

function place(name) {
  return FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length
}
