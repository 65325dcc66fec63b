/** The few words drawn on nodes, in the editor's language: locales/<language>/main.json, which the host serves for all packs. */

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const translations = api.fetchApi('/i18n').then((answer) => answer.json())

/** @returns {Promise<(key: string, values?: object) => string>} texts of the language set now, English where it has none */
export async function texts() {
  const all = await translations
  const language = app.extensionManager.setting.get('Comfy.Locale')
  const words = { ...all.en.modulationGuidance, ...all[language]?.modulationGuidance }
  return (key, values = {}) => words[key].replace(/\{(\w+)\}/g, (_, name) => values[name])
}
