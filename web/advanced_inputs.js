/** Folds advanced inputs away in the old rendering too, until its menu's Show Advanced is chosen, and advanced sockets in both. */

import { app } from '../../scripts/app.js'
import { foldSockets, foldedRows, forgetPlaces, isAdvanced } from './advanced_sockets.js'
import { after } from './after.js'
import { isOurs } from './pack.js'

app.registerExtension({
  name: 'ModulationGuidance.AdvancedInputs',

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs(nodeData)) return
    const { computeSize, getLayoutWidgets, toggleAdvanced } = nodeType.prototype
    Object.assign(nodeType.prototype, {
      computeSize(...args) {
        const size = computeSize.apply(this, args)
        size[1] -= foldedRows(this) * LiteGraph.NODE_SLOT_HEIGHT
        return size
      },
      // The editor's own leaves room for what is folded away.
      getLayoutWidgets() {
        return getLayoutWidgets.call(this).filter((widget) => this.collapsed || takesRoom(this, widget))
      },
      // The editor's own only lets a node grow.
      toggleAdvanced() {
        shrinkBy(this, () => toggleAdvanced.call(this))
        fold(this)
      }
    })
    for (const event of ['onAdded', 'onConfigure', 'onConnectionsChange']) after(nodeType.prototype, event, function () { fold(this) })
    after(nodeType.prototype, 'onRemoved', function () { foldSockets(this, false) })
    after(nodeType.prototype, 'onSerialize', forgetPlaces)
  },

  nodeCreated(node) {
    if (!isOurs(node.constructor.nodeData)) return
    whenToggled(node, () => fold(node))
    shrinkBy(node, () => fold(node))
  }
})

/** The new rendering's button sets the property alone. */
function whenToggled(node, then) {
  const { get, set } = descriptorOf(node, 'showAdvanced')
  Object.defineProperty(node, 'showAdvanced', {
    get: () => get.call(node),
    set: (value) => {
      set.call(node, value)
      then()
    },
    configurable: true
  })
}

function descriptorOf(object, name) {
  return Object.getOwnPropertyDescriptor(object, name) ?? descriptorOf(Object.getPrototypeOf(object), name)
}

function shrinkBy(node, change) {
  const before = node.computeSize()[1]
  change()
  const less = before - node.computeSize()[1]
  if (less > 0) node.setSize([node.size[0], node.size[1] - less])
}

function fold(node) {
  const always = app.extensionManager.setting.get('Comfy.Node.AlwaysShowAdvancedWidgets')
  const linked = new Set(node.inputs.filter((input, index) => isAdvanced(node, input) && node.isInputConnected(index)).map(({ name }) => name))
  foldSockets(node, !always && !node.showAdvanced)
  for (const widget of (node.widgets ?? []).filter(({ options }) => options?.advanced)) {
    widget.advanced = !always && !linked.has(widget.name)
    // Its socket, drawn while a link is dragged, goes with it: into the title, not over another.
    if (!node.collapsed && !takesRoom(node, widget)) widget.y = -LiteGraph.NODE_TITLE_HEIGHT
  }
  if (!linked.size || !node.graph || LiteGraph.vueNodesMode) return
  // Room for what a link has brought out, and its socket there before the link is drawn.
  node.expandToFitContent()
  node.arrange()
  node.setDirtyCanvas(true, true)
}

/** Newer editors tell a row from the widget in it, which a link hides. */
function takesRoom(node, widget) {
  return (node.isWidgetRowVisible ?? node.isWidgetVisible).call(node, widget)
}
