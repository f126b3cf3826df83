/** The models' accuracy, latency and cards. */

import { call, form } from "../api.js";
import { detail, clearCache, headline, models } from "../model_cards.js";
import { badge, whileBusy, segmented, errorNotice, loading } from "../controls.js";
import { announce, count, duration, h, formatRate, percent, replaceContent, compactNumber } from "../dom.js";
import { figure } from "../model_summary.js";
import { scatter } from "../scatter.js";

/** @typedef {import("../model_cards.js").Detail} Detail */

const ROUNDS = 5;
/** Titles of the tasks, in the order of the page. @type {Record<string, string>} */
const TASKS = {
  classify: "Classify",
  embed: "Compare faces",
  detect: "Detect faces",
  generate: "Generate",
  denoise: "Denoise",
  reconstruct: "Reconstruct",
};

/** @returns {import("../app.js").Tab} */
export default function modelsTab() {
  const plot = h("div", { class: "panel" }, loading("Loading model cards …", 5));
  const cards = h("div", { class: "stack" });
  const element = h("div", { class: "stack" }, plot, cards);
  /** @type {Promise<void> | undefined} */
  let loaded;

  async function load() {
    try {
      const all = await models();
      const details = await Promise.all(all.map((model) => detail(model.name)));
      replaceContent(plot, ...compared(details.filter(({ card }) => card.task === "classify" && accuracy(card))));
      replaceContent(cards, ...byTask(details));
    } catch (error) {
      loaded = undefined;
      replaceContent(
        plot,
        errorNotice(error, () => (loaded = load())),
      );
    }
  }

  return {
    title: "Models",
    lead: "Each model's purpose, training data, measured accuracy and licence.",
    element,
    async show(name) {
      if (!loaded) clearCache(); // which models are loaded may have changed
      loaded ??= load();
      await loaded;
      const card = name ? document.getElementById(`card-${name}`) : null;
      if (!card) return;
      card.querySelector("details")?.setAttribute("open", "");
      card.scrollIntoView({ block: "start" });
      card.focus({ preventScroll: true });
    },
  };
}

/** @param {any} card @returns {import("../model_cards.js").Metric | null} */
function accuracy(card) {
  const best = headline(card);
  return best?.name === "accuracy" ? best : null;
}

/** "cifar10 test (10,000)" -> "cifar10": accuracies on different data sets are not compared. @param {any} card */
function dataset(card) {
  return accuracy(card)?.data.split(" ")[0] ?? "";
}

/** @param {Detail[]} details of classifiers that have an accuracy */
function compared(details) {
  const sets = [...new Set(details.map(({ card }) => dataset(card)))];
  sets.sort((a, b) => ofSet(b).length - ofSet(a).length || a.localeCompare(b));
  /** Median in ms, by model. @type {Map<string, number>} */
  const latency = new Map();
  let shown = sets[0];

  /** @param {string} set */
  function ofSet(set) {
    return details.filter(({ card }) => dataset(card) === set);
  }

  const place = h("div");
  const caption = h("p", { class: "hint", role: "status" });
  const measure = h("button", { type: "button", class: "primary" }, "Measure latency");
  measure.addEventListener("click", () => whileBusy(measure, measureAll));
  const choose = segmented(
    "Data set",
    sets.map((set) => ({ value: set, label: set })),
    shown,
    (set) => {
      shown = set;
      draw();
    },
  );

  function draw() {
    const inSet = ofSet(shown);
    const all = inSet.every(({ card }) => latency.has(card.name));
    replaceContent(
      place,
      scatter({
        x: all ? "latency" : "parameters",
        y: "accuracy",
        writeX: all ? duration : compactNumber,
        writeY: percent,
        points: inSet.map(({ card }) => ({
          name: card.name,
          x: all ? (latency.get(card.name) ?? 0) : card.parameters,
          y: accuracy(card)?.value ?? 0,
          href: `#models/${card.name}`,
        })),
      }),
    );
    caption.textContent = all
      ? `Median of ${ROUNDS} sequential requests from this page, including network and queue.`
      : "Until the latency is measured, the x axis is the number of parameters. Measuring loads each model and sends it a few requests.";
  }

  async function measureAll() {
    try {
      const body = form({ file: await sample() });
      for (const { card } of ofSet(shown)) {
        caption.textContent = `Measuring ${card.name} …`;
        latency.set(card.name, await median(card.name, body));
      }
      draw();
      announce("Measured");
    } catch (error) {
      replaceContent(place, errorNotice(error, draw));
    }
  }

  draw();
  return [h("div", { class: "row spread" }, h("h2", {}, "Accuracy and latency"), measure), choose.element, place, caption];
}

/** Draw an image for the measurement. @returns {Promise<Blob>} */
function sample() {
  const canvas = h("canvas", { width: 320, height: 240 });
  const context = canvas.getContext("2d");
  if (context) {
    const paint = context.createLinearGradient(0, 0, 320, 240);
    paint.addColorStop(0, "#17414d");
    paint.addColorStop(1, "#f3b562");
    context.fillStyle = paint;
    context.fillRect(0, 0, 320, 240);
  }
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob ?? new Blob()), "image/jpeg"));
}

/**
 * @param {string} model
 * @param {FormData} body
 */
async function median(model, body) {
  const send = async () => (await call("classify", { method: "POST", query: { model, top_k: 1 }, body })).arrayBuffer();
  await send(); // loads the model and warms it up
  const times = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const begun = performance.now();
    await send();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[Math.floor(ROUNDS / 2)];
}

/** @param {Detail[]} details */
function byTask(details) {
  return Object.entries(TASKS).flatMap(([task, title]) => {
    const inTask = details.filter(({ card }) => card.task === task);
    if (!inTask.length) return [];
    return [
      h("section", { class: "stack" }, h("h2", {}, title), h("div", { class: "cards" }, ...inTask.map(modelCard))),
    ];
  });
}

/** @param {Detail} model */
function modelCard(model) {
  const { card } = model;
  const best = headline(card);
  const [name, value] = best ? figure(best) : ["", ""];
  const titleId = `title-card-${card.name}`;
  return h(
    "article",
    { class: "panel card", id: `card-${card.name}`, tabindex: "-1", "aria-labelledby": titleId },
    h(
      "div",
      { class: "row" },
      h("h3", { id: titleId }, card.name),
      model.default ? badge("default", "good") : null,
      model.loaded ? badge("loaded") : null,
    ),
    h("p", {}, card.description),
    best
      ? h(
          "div",
          { class: "figure" },
          h("strong", {}, value),
          h("span", {}, `${name}, ${best.data}${best.origin === "reported" ? ", as its authors report" : ""}`),
        )
      : null,
    h("p", { class: "licence" }, card.license),
    card.task === "classify" ? h("a", { href: `#classify/${card.name}` }, "Try it") : null,
    h("details", {}, h("summary", {}, "Full card"), ...cardDetails(model)),
  );
}

/** @param {Detail} model */
function cardDetails({ card, version, runtime }) {
  const training = card.training;
  return [
    facts([
      ["Trained on", card.data],
      ["Source", card.source],
      ["Architecture", `${card.architecture}, ${count(card.parameters)} parameters`],
      ["Input", `${card.preprocess.size.join(" × ")} pixels, ${card.preprocess.mode === "L" ? "grey" : "colour"}`],
      [
        "Classes",
        card.classes.length ? (card.classes.length <= 20 ? card.classes.join(", ") : count(card.classes.length)) : "",
      ],
      [
        "Trained for",
        training
          ? `${training.epochs} epochs, ${duration(training.wall_time_s * 1000)} on ${training.hardware}; seed ${training.seed}`
          : "",
      ],
      ["Weights", version],
      ["Runtime", runtime ?? "not loaded yet"],
    ]),
    h("h4", {}, "Metrics"),
    metricTable(card),
    h("h4", {}, "Calibration"),
    ...calibration(card),
  ];
}

/** @param {[string, string][]} rows */
function facts(rows) {
  return h(
    "dl",
    { class: "facts" },
    ...rows.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** @param {any} card */
function metricTable(card) {
  const rows = card.metrics.map((/** @type {import("../model_cards.js").Metric} */ metric) => {
    const [name, value] = figure(metric);
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", { class: "number" }, value),
      h("td", {}, metric.data, metric.origin === "reported" ? " (reported)" : ""),
    );
  });
  return table(`Metrics of ${card.name}`, ["Metric", "Value", "Data"], rows);
}

/** @param {any} card */
function calibration(card) {
  if (card.matching) {
    const rows = card.matching.points.map((/** @type {import("../model_cards.js").Point} */ point) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, formatRate(point.fmr)),
        h("td", { class: "number" }, (1 - point.similarity).toFixed(3)),
      ),
    );
    return [
      h("p", { class: "hint" }, `Thresholds calibrated on ${card.matching.data}.`),
      table(`Thresholds of ${card.name}`, ["False match rate", "Distance"], rows),
    ];
  }
  if (card.task === "classify") {
    const fitted = card.temperature !== 1;
    const words = fitted
      ? `Logits are divided by a temperature of ${card.temperature.toFixed(2)}, so that confidences are calibrated.`
      : "No temperature was fitted: confidences are the network's raw softmax.";
    return [h("p", { class: "hint" }, words)];
  }
  return [h("p", { class: "hint" }, "This model returns no probabilities.")];
}

/**
 * @param {string} caption
 * @param {string[]} columns
 * @param {HTMLElement[]} rows
 */
function table(caption, columns, rows) {
  return h(
    "table",
    {},
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, ...columns.map((column) => h("th", { scope: "col" }, column)))),
    h("tbody", {}, ...rows),
  );
}
