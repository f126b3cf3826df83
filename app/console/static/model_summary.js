/** A model in a few lines, as it stands beside the choice of a model. */

import { headline } from "./catalogue.js";
import { count, h, percent, short } from "./dom.js";

/** What a figure of a card is called, and how it is written. @type {Record<string, [string, (value: number) => string]>} */
const METRICS = {
  accuracy: ["Accuracy", percent],
  accuracy_tta: ["Accuracy, several views", percent],
  "average precision": ["Average precision", (value) => value.toFixed(3)],
  ece: ["Calibration error", percent],
  ece_tta: ["Calibration error, several views", percent],
  nll: ["Log loss", (value) => value.toFixed(3)],
  nll_tta: ["Log loss, several views", (value) => value.toFixed(3)],
  eer: ["Equal error rate", percent],
  psnr: ["PSNR", decibels],
  asked: ["Read as asked", percent],
  precision: ["Precision", percent],
  recall: ["Recall", percent],
  frechet: ["Fréchet distance", (value) => value.toFixed(1)],
  elbo: ["ELBO", (value) => value.toFixed(1)],
  kl: ["KL divergence", (value) => value.toFixed(1)],
};

/** @param {number} value */
function decibels(value) {
  return `${value.toFixed(1)} dB`;
}

/**
 * A figure's name and value in words.
 * @param {import("./catalogue.js").Metric} metric
 * @returns {[string, string]}
 */
export function figure(metric) {
  const [name, write] = METRICS[metric.name] ?? named(metric.name);
  return [name, write(metric.value)];
}

/**
 * @param {string} name
 * @returns {[string, (value: number) => string]}
 */
function named(name) {
  const rate = name.match(/^tar@fmr=(.*)$/);
  if (rate) return [`True matches at ${Number(rate[1]) * 100} % false`, percent];
  const noise = name.match(/^psnr_\w+?_([\d.]+)$/);
  if (noise) return [`PSNR, noise of σ ${Math.round(Number(noise[1]))}`, decibels];
  return [name.replaceAll("_", " "), (value) => (Number.isInteger(value) ? count(value) : value.toPrecision(3))];
}

/** @param {import("./catalogue.js").Detail} detail */
export function modelSummary({ card }) {
  const best = headline(card);
  const [name, value] = best ? figure(best) : ["", ""];
  return h(
    "div",
    {},
    h("p", {}, card.description),
    h(
      "p",
      { class: "hint" },
      best ? `${name} ${value} on ${best.data}${best.origin === "reported" ? ", as its authors report" : ""} · ` : "",
      `${short(card.parameters)} parameters · `,
      h("a", { href: `#models/${card.name}` }, "its card"),
    ),
    h("p", { class: "hint" }, card.license),
  );
}
