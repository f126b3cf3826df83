/** A distance on a scale with the calibrated thresholds. */

import { h, formatRate } from "./dom.js";

const MOST = 1.2; // different persons are about 1 apart; larger distances, at most 2, are shown at the end

/**
 * Position an element at a distance on the scale.
 * @template {HTMLElement} T
 * @param {T} element
 * @param {number} distance
 */
function positioned(element, distance) {
  element.style.left = `${(Math.min(distance, MOST) / MOST) * 100}%`;
  return element;
}

/**
 * Draw the scale. `marks` are the thresholds at round rates; the current threshold is emphasised.
 * @param {{distance: number, threshold: number, fmr: number, marks: {fmr: number, distance: number}[]}} shown
 */
export function scale({ distance, threshold, fmr, marks }) {
  const all = [...marks.filter((mark) => mark.fmr !== fmr), { fmr, distance: threshold }].sort((a, b) => b.fmr - a.fmr);
  const near = h("span", { class: "near" });
  near.style.width = `${(Math.min(threshold, MOST) / MOST) * 100}%`;
  const marker = h(
    "span",
    { class: `found ${distance <= threshold ? "good" : "warn"}` },
    h("b", {}, distance.toFixed(3)),
  );
  const line = h(
    "div",
    { class: "line", "aria-hidden": "true" },
    near,
    ...all.map((mark) =>
      positioned(h("span", { class: mark.fmr === fmr ? "tick chosen" : "tick" }, power(mark.fmr)), mark.distance),
    ),
    positioned(marker, distance),
  );
  return h(
    "div",
    { class: "scale" },
    line,
    h(
      "div",
      { class: "ends hint", "aria-hidden": "true" },
      h("span", {}, "0: identical"),
      h("span", {}, "about 1: different persons"),
    ),
    h(
      "p",
      { class: "hint" },
      `Thresholds: ${all.map((mark) => `${formatRate(mark.fmr)} at ${mark.distance.toFixed(3)}`).join(" · ")}`,
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
