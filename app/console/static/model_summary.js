/** A short description of a model, shown below the model selection. */

import { headline } from "./model_cards.js";
import { count, h, percent, compactNumber } from "./dom.js";

/** The label and format of each metric of a card. @type {Record<string, [string, (value: number) => string]>} */
const METRICS = {
  accuracy: ["Accuracy", percent],
  accuracy_tta: ["Accuracy, several views", percent],
  "average precision": ["Average precision", (value) => value.toFixed(3)],
  ece: ["Calibration error", percent],
  ece_tta: ["Calibration error, several views", percent],
  nll: ["Log loss", (value) => value.toFixed(3)],
  nll_tta: ["Log loss, several views", (value) => value.toFixed(3)],
  eer: ["Equal error rate", percent],
  "accepted@reject=0.05": ["Accepted, of its own classes, at a rejection of 5 %", percent],
  auroc: ["AUROC of the rejection", (value) => value.toFixed(3)],
  auroc_softmax: ["AUROC of the largest probability", (value) => value.toFixed(3)],
  psnr: ["PSNR", decibels],
  asked: ["Label recognised", percent],
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
 * Return a metric's label and formatted value.
 * @param {import("./model_cards.js").Metric} metric
 * @returns {[string, string]}
 */
export function figure(metric) {
  const [name, write] = METRICS[metric.name] ?? describeMetric(metric.name);
  return [name, write(metric.value)];
}

/**
 * Return the label and format of a metric that is not in METRICS.
 * @param {string} name
 * @returns {[string, (value: number) => string]}
 */
function describeMetric(name) {
  const rate = name.match(/^tar@fmr=(.*)$/);
  if (rate) return [`True matches at ${Number(rate[1]) * 100} % false`, percent];
  const int8 = name.match(/^(\w+)_int8$/);
  if (int8 && METRICS[int8[1]]) return [`${METRICS[int8[1]][0]}, 8-bit integers`, METRICS[int8[1]][1]];
  const noise = name.match(/^psnr_\w+?_([\d.]+)$/);
  if (noise) return [`PSNR, noise of σ ${Math.round(Number(noise[1]))}`, decibels];
  return [name.replaceAll("_", " "), (value) => (Number.isInteger(value) ? count(value) : value.toPrecision(3))];
}

/** @param {import("./model_cards.js").Detail} detail */
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
      `${compactNumber(card.parameters)} parameters · `,
      h("a", { href: `#models/${card.name}` }, "model card"),
    ),
    h("p", { class: "hint" }, card.license),
  );
}
