/** The models of this service and their cards; asked for once, and again when that is asked for. */

import { ask } from "./api.js";

/**
 * @typedef {{name: string, version: string, task: string, description: string, license: string, parameters: number,
 *   classes: number, default: boolean, loaded: boolean}} Summary a row of GET /models
 * @typedef {{name: string, value: number, data: string, origin: string}} Metric
 * @typedef {{fmr: number, similarity: number}} Point
 * @typedef {{version: string, default: boolean, loaded: boolean, runtime: string | null, card: any}} Detail
 */

/** @type {Promise<Summary[]> | undefined} */
let listed;
/** @type {Map<string, Promise<Detail>>} */
const details = new Map();

/**
 * Every model, or those of some tasks; the default first.
 * @param {...string} tasks
 * @returns {Promise<Summary[]>}
 */
export async function models(...tasks) {
  listed ??= ask("models").then((answer) => answer.data);
  listed.catch(forget);
  const found = (await listed).filter((model) => tasks.length === 0 || tasks.includes(model.task));
  return found.sort((a, b) => Number(b.default) - Number(a.default) || a.name.localeCompare(b.name));
}

/**
 * One model's card.
 * @param {string} name
 * @returns {Promise<Detail>}
 */
export function detail(name) {
  let asked = details.get(name);
  if (!asked) {
    asked = ask(`models/${encodeURIComponent(name)}`);
    asked.catch(() => details.delete(name));
    details.set(name, asked);
  }
  return asked;
}

/** Ask anew from now on: what is loaded changes with what is used. */
export function forget() {
  listed = undefined;
  details.clear();
}

/**
 * The figure that says most: on test pictures before validation pictures.
 * @param {any} card
 * @returns {Metric | undefined}
 */
export function headline(card) {
  const metrics = /** @type {Metric[]} */ (card.metrics);
  const rank = (/** @type {Metric} */ metric) =>
    (["accuracy", "asked"].includes(metric.name) ? 0 : 10) + (metric.data.includes("test") ? 0 : 1);
  return [...metrics].sort((a, b) => rank(a) - rank(b))[0];
}

/**
 * Whether a model can read a string of digits.
 * @param {any} card
 */
export function readsDigits(card) {
  return card.classes.join("") === "0123456789" && card.preprocess.mode === "L";
}

/**
 * The distance below which `fmr` of the strangers lie, as `models.matching` has it; null beyond what was counted.
 * @param {any} matching of an embedder's card
 * @param {number} fmr
 * @returns {number | null}
 */
export function distanceAt(matching, fmr) {
  const points = /** @type {Point[]} */ (matching.points);
  const near = 1 + 1e-9; // rates in a card are sums of floats
  if (fmr > points[0].fmr * near) return null;
  const after = points.findIndex((point) => point.fmr <= fmr * near);
  if (after < 0) return null;
  const [high, low] = [points[Math.max(0, after - 1)], points[after]];
  const share = high === low ? 0 : Math.log(high.fmr / fmr) / Math.log(high.fmr / low.fmr);
  return 1 - (high.similarity + share * (low.similarity - high.similarity));
}
