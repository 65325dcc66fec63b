/** Tables of this pack's help pages in a narrow panel: the last column goes below the others, so that nothing is cut off. */

import { FOLDER, addStyle } from './pack.js'

// Every page of ours has a picture from our folder; the editor puts nothing else on a page that tells whose it is.
const PAGE = `.node-help-content:has(img[src*=${JSON.stringify(`/extensions/${FOLDER}/docs/`)}])`

addStyle(`
  ${PAGE} { container-type: inline-size; overflow-wrap: anywhere }
  @container (max-width: 600px) {
    ${PAGE} :is(table, thead, tbody) { display: block; width: 100%; overflow: visible }
    ${PAGE} tr { display: flex; flex-wrap: wrap }
    ${PAGE} :is(th, td) { padding-block: 2px; text-align: start }
    ${PAGE} :is(th, td):empty { display: none }
    ${PAGE} :is(th, td):last-child { flex: 1 0 100%; min-width: 0 }
  }
`)
