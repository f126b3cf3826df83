/** Create DOM elements and format numbers. Text is never parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, unknown>} Attributes functions named `on...` are listeners; true is an empty attribute,
 *   false none; names in PROPERTIES are set as properties
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
  element.append(...toNodes(children));
}

/**
 * @param {Child[]} children
 * @returns {(Node | string)[]}
 */
function toNodes(children) {
  return children
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/**
 * Create an HTML element.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  // The value of a select can be set only after its options exist.
  const { value, ...rest } = attributes;
  fill(element, rest, children);
  if (value !== undefined) Reflect.set(element, "value", value);
  return element;
}

/**
 * Create an SVG element.
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
 * Replace the children of an element.
 * @param {Element} element
 * @param {...Child} children
 */
export function replaceContent(element, ...children) {
  element.replaceChildren(...toNodes(children));
}

/**
 * Replace the rows of a list and leave those that stay where they are, so that they keep the focus.
 * @param {HTMLElement} list
 * @param {HTMLElement[]} rows
 */
export function replaceRows(list, rows) {
  for (const child of [...list.children]) {
    if (!rows.includes(/** @type {HTMLElement} */ (child))) child.remove();
  }
  rows.forEach((row, index) => {
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
  });
}

/**
 * Announce a text to screen readers.
 * @param {string} text
 */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  if (announcer) announcer.textContent = text;
}

let ids = 0;

/**
 * Return an element id that is unique in this page.
 * @param {string} prefix
 */
export function uniqueId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/**
 * 0.9531 -> "95.3 %"; shares near 0 and 1 are not rounded to them.
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
 * A number with its noun: `plural(1, "face")` -> "1 face".
 * @param {number} number
 * @param {string} singular
 * @param {string} [several]
 */
export function plural(number, singular, several = `${singular}s`) {
  return `${count(number)} ${number === 1 ? singular : several}`;
}

/**
 * 4652008 -> "4.7 M".
 * @param {number} value
 */
export function compactNumber(value) {
  return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 })
    .format(value)
    .replace(/([A-Z])$/, "\u00a0$1");
}

/**
 * Format a duration.
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
export function formatRate(rate) {
  return `1 in ${count(Math.round(1 / rate))}`;
}

/**
 * Format a time in the browser's time zone.
 * @param {string} iso
 */
export function formatTime(iso) {
  return new Date(iso).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

/**
 * Format a time of today with its seconds, another one with its date.
 * @param {string} iso
 */
export function formatClock(iso) {
  const time = new Date(iso);
  if (time.toDateString() === new Date().toDateString()) {
    return time.toLocaleTimeString("en", { timeStyle: "medium", hourCycle: "h23" });
  }
  return time.toLocaleString("en", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}
