/** Colors of this pack's own sockets and their links, where the theme names none. */

import { app } from '../../scripts/app.js'
import { addStyle } from './pack.js'

const COLORS = {
  GUIDANCE_DIRECTION: '#ec407a',
  LAYER_SCHEDULE: '#00bfa5',
  POOLED_PROJECTION: '#afb42b',
  PICTURE_SCORER: '#7e57c2'
}

// A theme that names a color sets it on the element itself, which goes before a rule.
addStyle(`:root { ${Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`).join(' ')} }`)

app.registerExtension({
  name: 'ModulationGuidance.SocketColors',

  setup() {
    for (const colors of [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors]) {
      for (const [type, color] of Object.entries(COLORS)) standIn(colors, type, color)
    }
  }
})

/** The editor sets '' for every type that a theme does not name, each time that it loads one. */
function standIn(colors, type, color) {
  let named = colors[type]
  Object.defineProperty(colors, type, {
    get: () => named || color,
    set: (value) => { named = value },
    enumerable: true,
    configurable: true
  })
}
