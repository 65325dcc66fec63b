/** Runs `more` after an object's own method, which many extensions wrap in this way. */
export function after(object, method, more) {
  const own = object[method]
  object[method] = function (...args) {
    const result = own?.apply(this, args)
    more.apply(this, args)
    return result
  }
}
