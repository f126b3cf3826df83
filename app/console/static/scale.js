/** A distance on a scale with the thresholds that were counted. */

import { h, oneIn } from "./dom.js";

const MOST = 1.2; // strangers lie about 1 apart; 2 is possible, and is shown at the end

/**
 * Move an element to where a distance lies.
 * @template {HTMLElement} T
 * @param {T} element
 * @param {number} distance
 */
function placed(element, distance) {
  element.style.left = `${(Math.min(distance, MOST) / MOST) * 100}%`;
  return element;
}

/**
 * `marks` are the thresholds at round rates; the chosen one is drawn stronger, also where it is none of them.
 * @param {{distance: number, threshold: number, fmr: number, marks: {fmr: number, distance: number}[]}} shown
 */
export function scale({ distance, threshold, fmr, marks }) {
  const others = marks.filter((mark) => mark.fmr !== fmr);
  const all = [...others, { fmr, distance: threshold }].sort((a, b) => b.fmr - a.fmr);
  const near = h("span", { class: "near" });
  near.style.width = `${(Math.min(threshold, MOST) / MOST) * 100}%`;
  const found = h(
    "span",
    { class: `found ${distance <= threshold ? "good" : "warn"}` },
    h("b", {}, distance.toFixed(3)),
  );
  const line = h(
    "div",
    { class: "line", "aria-hidden": "true" },
    near,
    ...all.map((mark) =>
      placed(h("span", { class: mark.fmr === fmr ? "tick chosen" : "tick" }, power(mark.fmr)), mark.distance),
    ),
    placed(found, distance),
  );
  return h(
    "div",
    { class: "scale" },
    line,
    h(
      "div",
      { class: "ends hint", "aria-hidden": "true" },
      h("span", {}, "0: the same"),
      h("span", {}, "about 1: strangers"),
    ),
    h(
      "p",
      { class: "hint" },
      `Thresholds: ${all.map((mark) => `${oneIn(mark.fmr)} at ${mark.distance.toFixed(3)}`).join(" · ")}`,
    ),
  );
}

/**
 * 0.001 -> "10⁻³"
 * @param {number} rate
 */
function power(rate) {
  const exponent = Math.round(-Math.log10(rate));
  return `10⁻${"⁰¹²³⁴⁵⁶⁷⁸⁹"[exponent] ?? ""}`;
}
