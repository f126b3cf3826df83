/** Elements, and numbers as people read them. Nothing here makes HTML out of text: what the service says stays text. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, unknown>} Attributes `on...` are listeners; true is an empty attribute, false none;
 *   `value`, `checked` and the like are properties
 */

const PROPERTIES = new Set([
  "value",
  "checked",
  "disabled",
  "hidden",
  "selected",
  "htmlFor",
  "srcObject",
  "indeterminate",
]);

/**
 * @param {Element} element
 * @param {Attributes} attributes
 * @param {Child[]} children
 */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (PROPERTIES.has(name)) Reflect.set(element, name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...shown(children));
}

/**
 * @param {Child[]} children
 * @returns {(Node | string)[]}
 */
function shown(children) {
  return children
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/**
 * An HTML element.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  // A select takes its value only once its options are there.
  const { value, ...others } = attributes;
  fill(element, others, children);
  if (value !== undefined) Reflect.set(element, "value", value);
  return element;
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {SVGElement}
 */
export function s(tag, attributes = {}, ...children) {
  const element = /** @type {SVGElement} */ (document.createElementNS(SVG, tag));
  fill(element, attributes, children);
  return element;
}

/**
 * Put these in place of what is in there.
 * @param {Element} element
 * @param {...Child} children
 */
export function put(element, ...children) {
  element.replaceChildren(...shown(children));
}

/**
 * Say something to those who do not see the page.
 * @param {string} text
 */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  if (announcer) announcer.textContent = text;
}

let ids = 0;

/**
 * An id that no other element has.
 * @param {string} prefix
 */
export function uniqueId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/**
 * 0.9531 -> "95.3 %"; never a rounded certainty.
 * @param {number} share 0..1
 */
export function percent(share) {
  if (share > 0.999 && share < 1) return ">\u00a099.9\u00a0%";
  if (share > 0 && share < 0.001) return "<\u00a00.1\u00a0%";
  return `${(share * 100).toFixed(1)}\u00a0%`;
}

/** @param {number} value */
export function count(value) {
  return value.toLocaleString("en");
}

/**
 * A thing or several: `many(1, "face")` -> "1 face".
 * @param {number} number
 * @param {string} one
 * @param {string} [several]
 */
export function many(number, one, several = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : several}`;
}

/**
 * 4652008 -> "4.7 M".
 * @param {number} value
 */
export function short(value) {
  return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 })
    .format(value)
    .replace(/([A-Z])$/, "\u00a0$1");
}

/**
 * A time that took so long.
 * @param {number} ms
 */
export function duration(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(0)}\u00a0s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)}\u00a0s`;
  return `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)}\u00a0ms`;
}

/**
 * 0.001 -> "1 in 1,000".
 * @param {number} rate
 */
export function oneIn(rate) {
  return `1 in ${count(Math.round(1 / rate))}`;
}

/**
 * A moment as the reader's clock shows it.
 * @param {string} iso
 */
export function moment(iso) {
  return new Date(iso).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}
