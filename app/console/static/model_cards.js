/** The service's models and their cards, cached until `clearCache`. */

import { requestJson } from "./api.js";

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
 * Return all models, or those of some tasks, sorted by name with the default first.
 * @param {...string} tasks
 * @returns {Promise<Summary[]>}
 */
export async function models(...tasks) {
  listed ??= requestJson("models").then((answer) => answer.data);
  listed.catch(clearCache);
  const matching = (await listed).filter((model) => tasks.length === 0 || tasks.includes(model.task));
  return matching.sort((a, b) => Number(b.default) - Number(a.default) || a.name.localeCompare(b.name));
}

/**
 * Return a model's card.
 * @param {string} name
 * @returns {Promise<Detail>}
 */
export function detail(name) {
  let request = details.get(name);
  if (!request) {
    request = requestJson(`models/${encodeURIComponent(name)}`);
    request.catch(() => details.delete(name));
    details.set(name, request);
  }
  return request;
}

/** Forget the cached models: which ones are loaded changes with use. */
export function clearCache() {
  listed = undefined;
  details.clear();
}

/**
 * Return a card's most important metric: accuracy first, on test images before validation images.
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
 * Return whether a model can read strings of digits.
 * @param {any} card
 */
export function readsDigits(card) {
  return card.classes.join("") === "0123456789" && card.preprocess.mode === "L";
}

/**
 * Return the distance threshold at a false match rate, as computed by `models.matching`; null outside its calibration.
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
