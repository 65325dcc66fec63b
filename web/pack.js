/** Which nodes are this pack's: those of the folder that this file is served from, whatever that is called. */

export const FOLDER = decodeURIComponent(new URL('.', import.meta.url).pathname.split('/').at(-2))

export function isOurs(nodeData) {
  return nodeData?.python_module === `custom_nodes.${FOLDER}`
}

/** Adds rules to the page, below those that an element has itself, in a <style> that is returned. */
export function addStyle(rules) {
  const style = document.createElement('style')
  style.textContent = rules
  document.head.append(style)
  return style
}
