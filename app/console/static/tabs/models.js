/** How good is each model, how fast is it here, and what was it made of? */

import { call, form } from "../api.js";
import { detail, forget, headline, models } from "../catalogue.js";
import { badge, during, segmented, trouble, waiting } from "../controls.js";
import { announce, count, duration, h, oneIn, percent, put, short } from "../dom.js";
import { figure } from "../model_summary.js";
import { scatter } from "../scatter.js";

/** @typedef {import("../catalogue.js").Detail} Detail */

const ROUNDS = 5;
/** In the order of what people look for first. @type {Record<string, string>} */
const TASKS = {
  classify: "Classify",
  embed: "Compare faces",
  detect: "Find faces",
  generate: "Draw",
  denoise: "Clean",
  reconstruct: "Reconstruct",
};

/** @returns {import("../app.js").Tab} */
export default function modelsTab() {
  const plot = h("div", { class: "panel" }, waiting("Asking for the cards …", 5));
  const cards = h("div", { class: "stack" });
  const element = h("div", { class: "stack" }, plot, cards);
  /** @type {Promise<void> | undefined} */
  let loaded;

  async function load() {
    try {
      const found = await models();
      const details = await Promise.all(found.map((model) => detail(model.name)));
      put(plot, ...compared(details.filter(({ card }) => card.task === "classify" && accuracy(card))));
      put(cards, ...byTask(details));
    } catch (error) {
      loaded = undefined;
      put(
        plot,
        trouble(error, () => (loaded = load())),
      );
    }
  }

  return {
    title: "Models",
    lead: "What each model is, what it was trained on, how good it measured, and under which licence it may be used.",
    element,
    async show(name) {
      if (!loaded) forget(); // what is loaded has changed since
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

/** @param {any} card @returns {import("../catalogue.js").Metric | null} */
function accuracy(card) {
  const best = headline(card);
  return best?.name === "accuracy" ? best : null;
}

/** "cifar10 test (10,000)" -> "cifar10": figures on different pictures are not compared. @param {any} card */
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
  const told = h("p", { class: "hint", role: "status" });
  const measure = h("button", { type: "button", class: "primary" }, "Measure here");
  measure.addEventListener("click", () => during(measure, measureAll));
  const choose = segmented(
    "Measured on",
    sets.map((set) => ({ value: set, label: set })),
    shown,
    (set) => {
      shown = set;
      draw();
    },
  );

  function draw() {
    const found = ofSet(shown);
    const timed = found.filter(({ card }) => latency.has(card.name));
    const all = timed.length === found.length;
    put(
      place,
      scatter({
        x: all ? "latency here" : "parameters",
        y: "accuracy",
        writeX: all ? duration : short,
        writeY: percent,
        points: found.map(({ card }) => ({
          name: card.name,
          x: all ? (latency.get(card.name) ?? 0) : card.parameters,
          y: accuracy(card)?.value ?? 0,
          href: `#models/${card.name}`,
        })),
      }),
    );
    told.textContent = all
      ? `The median of ${ROUNDS} answers to one picture, one after the other, from this page and back: the network, the queue and all that runs beside it count.`
      : "Over the number of parameters, until the latency is measured. That loads each model once and asks it a few times.";
  }

  async function measureAll() {
    try {
      const body = form({ file: await sample() });
      for (const { card } of ofSet(shown)) {
        told.textContent = `Asking ${card.name} …`;
        latency.set(card.name, await median(card.name, body));
      }
      draw();
      announce("Measured");
    } catch (error) {
      put(place, trouble(error, draw));
    }
  }

  draw();
  return [h("div", { class: "row spread" }, h("h2", {}, "How good, how fast?"), measure), choose.element, place, told];
}

/** A picture to ask about: of the page's own making, so that it is there in any case. @returns {Promise<Blob>} */
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
  const ask = async () => (await call("classify", { method: "POST", query: { model, top_k: 1 }, body })).arrayBuffer();
  await ask(); // it is loaded, and warm
  const times = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const begun = performance.now();
    await ask();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[Math.floor(ROUNDS / 2)];
}

/** @param {Detail[]} details */
function byTask(details) {
  return Object.entries(TASKS).flatMap(([task, title]) => {
    const found = details.filter(({ card }) => card.task === task);
    if (!found.length) return [];
    return [
      h("section", { class: "stack" }, h("h2", {}, title), h("div", { class: "cards" }, ...found.map(shownCard))),
    ];
  });
}

/** @param {Detail} model */
function shownCard(model) {
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
    h("details", {}, h("summary", {}, "The whole card"), ...whole(model)),
  );
}

/** @param {Detail} model */
function whole({ card, version, runtime }) {
  const training = card.training;
  return [
    facts([
      ["Trained on", card.data],
      ["From", card.source],
      ["Architecture", `${card.architecture}, ${count(card.parameters)} parameters`],
      ["Sees", `${card.preprocess.size.join(" × ")} pixels, ${card.preprocess.mode === "L" ? "grey" : "colour"}`],
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
      ["Runs by", runtime ?? "not loaded yet"],
    ]),
    h("h4", {}, "Measured"),
    measured(card),
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
function measured(card) {
  const rows = card.metrics.map((/** @type {import("../catalogue.js").Metric} */ metric) => {
    const [name, value] = figure(metric);
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", { class: "number" }, value),
      h("td", {}, metric.data, metric.origin === "reported" ? " (reported)" : ""),
    );
  });
  return table(`What was measured of ${card.name}`, ["Figure", "Value", "On"], rows);
}

/** @param {any} card */
function calibration(card) {
  if (card.matching) {
    const rows = card.matching.points.map((/** @type {import("../catalogue.js").Point} */ point) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, oneIn(point.fmr)),
        h("td", { class: "number" }, (1 - point.similarity).toFixed(3)),
      ),
    );
    return [
      h("p", { class: "hint" }, `Thresholds as counted on ${card.matching.data}.`),
      table(`Thresholds of ${card.name}`, ["False matches", "Distance"], rows),
    ];
  }
  if (card.task === "classify") {
    const fitted = card.temperature !== 1;
    const words = fitted
      ? `Logits are divided by a temperature of ${card.temperature.toFixed(2)}, so that of answers with a confidence of 80 % four in five are right.`
      : "No temperature was fitted: the confidences are the network's own.";
    return [h("p", { class: "hint" }, words)];
  }
  return [h("p", { class: "hint" }, "This model states no probability.")];
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
    h("caption", { class: "heard" }, caption),
    h("thead", {}, h("tr", {}, ...columns.map((column) => h("th", { scope: "col" }, column)))),
    h("tbody", {}, ...rows),
  );
}
