/** Classify images, or read strings of digits. */

import { Latest, Problem, call, form, isAbort, timings } from "../api.js";
import { detail, models, readsDigits } from "../model_cards.js";
import { bar, checkbox, terminalCommand, emptyState, field, onSelect, slider, errorNotice, loading } from "../controls.js";
import { announce, duration, h, plural, percent, replaceContent } from "../dom.js";
import { annotatedImage } from "../drawing.js";
import { modelSummary } from "../model_summary.js";
import { picker, release } from "../image_picker.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {import("../model_cards.js").Detail} Detail
 * @typedef {{class: string, class_id: number, confidence: number}} Prediction
 * @typedef {{predictions?: Prediction[], rejected?: boolean, digits?: Digit[], sequence?: string, confidence?: number, problem?: any}} Answer
 * @typedef {Prediction & {box: number[]}} Digit
 * @typedef {{picture: Picture, frame: ReturnType<typeof annotatedImage>, said: HTMLElement, element: HTMLElement}} Shown
 */

/** The share of images of the model's own classes that may be rejected. */
const REJECT = 0.05;

const EXAMPLES = ["coffee.jpg", "cat.jpg", "astronaut.jpg", "digits.png"];

/** @returns {import("../app.js").Tab} */
export default function classify() {
  /** @type {Shown[]} */
  let shown = [];
  /** @type {Detail | undefined} */
  let chosen;
  const latest = new Latest();

  const select = h("select", { disabled: true });
  const summary = h("div", { class: "summary" });
  const top = slider({ label: "Number of classes", min: 1, max: 10, step: 1, value: 5, onInput: runSoon });
  const tta = checkbox("Test-time augmentation", false, run);
  const reject = checkbox("Reject images of none of its classes", false, run);
  const sequence = checkbox("Read a string of digits", false, () => {
    updateOptions();
    run();
  });
  const hint = h("p", { class: "hint" });
  const took = h("p", { class: "hint took" });
  const clear = h("button", { type: "button", class: "quiet", onclick: () => remove(...shown) }, "Clear");
  const results = h("div", { class: "results" });
  const terminal = terminalCommand(curl);

  onSelect(select, summary, async (name) => {
    await choose(name);
    await run();
  });

  const element = h(
    "div",
    { class: "split answers" },
    h(
      "div",
      { class: "side" },
      picker({ label: "Images", multiple: true, examples: EXAMPLES, onPictures: add }).element,
      h("div", { class: "panel" }, field("Model", select), summary, top.element, tta.element, reject.element, sequence.element, hint),
      terminal.element,
    ),
    h("div", { class: "stage" }, h("div", { class: "row spread" }, took, clear), results),
  );
  updateOptions();
  showIntroduction();
  const started = start();

  async function start() {
    try {
      const available = await models("classify");
      replaceContent(select, ...available.map((model) => h("option", { value: model.name }, model.name)));
      select.disabled = false;
      await choose(available[0].name);
    } catch (error) {
      replaceContent(results, errorNotice(error, start));
    }
  }

  /** @param {string} name */
  async function choose(name) {
    select.value = name;
    chosen = await detail(name);
    replaceContent(summary, modelSummary(chosen));
    updateOptions();
  }

  /** Enable the options that the model supports. */
  function updateOptions() {
    const reads = chosen !== undefined && readsDigits(chosen.card);
    sequence.element.hidden = !reads;
    if (!reads) sequence.box.checked = false;
    const string = sequence.box.checked;
    tta.box.disabled = string || !chosen || chosen.card.tta === "none";
    if (tta.box.disabled) tta.box.checked = false;
    reject.box.disabled = string || !chosen?.card.rejection;
    if (reject.box.disabled) reject.box.checked = false;
    top.input.disabled = string;
    const classes = chosen?.card.classes.length ?? 10;
    top.max = Math.min(10, classes);
    hint.textContent = string ? "White on black or black on white; digits may touch." : "";
    terminal.update();
  }

  /** @param {Picture[]} pictures */
  async function add(pictures) {
    if (pictures.some((picture) => picture.name === "digits.png")) await chooseDigitReader();
    for (const picture of pictures) {
      const frame = annotatedImage(picture.url, picture.name);
      const said = h("div", { class: "said" });
      const drop = h("button", { type: "button", class: "close", "aria-label": `Remove ${picture.name}` }, "×");
      const card = h("article", { class: "result" }, frame.element, said, drop);
      const item = { picture, frame, said, element: card };
      drop.addEventListener("click", () => remove(item));
      shown.push(item);
    }
    replaceContent(results, ...shown.map((item) => item.element));
    await run();
  }

  /** Choose a model that reads digits, for the example of digits. */
  async function chooseDigitReader() {
    for (const model of (await models("classify")).filter((item) => item.classes === 10)) {
      if (!readsDigits((await detail(model.name)).card) || !model.name.startsWith("lenet")) continue;
      await choose(model.name);
      sequence.box.checked = true;
      updateOptions();
      return;
    }
  }

  /** @param {...Shown} gone */
  function remove(...gone) {
    for (const item of gone) {
      item.element.remove();
      release(item.picture);
    }
    shown = shown.filter((item) => !gone.includes(item));
    showIntroduction();
  }

  /** Without images, show how to begin. */
  function showIntroduction() {
    clear.hidden = shown.length === 0;
    if (shown.length) return;
    latest.stop();
    took.textContent = "";
    replaceContent(
      results,
      emptyState(
        "Classify an image",
        h("p", {}, "Choose, drop or paste one or more images, or click an example."),
        h("p", {}, "Images are sent to this service only, and it does not store them."),
      ),
    );
  }

  /** @type {number | undefined} */
  let timer;

  /** Run when the slider has stopped moving. */
  function runSoon() {
    clearTimeout(timer);
    timer = setTimeout(run, 250);
    terminal.update();
  }

  function query() {
    return {
      model: select.value,
      top_k: sequence.box.checked ? null : top.value,
      tta: tta.box.checked || null,
      reject: reject.box.checked ? REJECT : null,
      sequence: sequence.box.checked || null,
    };
  }

  async function run() {
    terminal.update();
    if (!shown.length || !select.value) return;
    clear.hidden = false;
    const signal = latest.next();
    const requested = [...shown];
    for (const item of requested) if (!item.said.hasChildNodes()) replaceContent(item.said, loading("Classifying …"));
    results.setAttribute("aria-busy", "true");
    try {
      const body = form({ file: requested.map((item) => item.picture.blob) });
      const response = await call("classify", { method: "POST", query: query(), body, signal });
      const answer = await response.json();
      const times = timings(response);
      took.textContent = `${plural(requested.length, "image")} in ${duration(times.total)}: decoding ${duration(times.decode ?? 0)}, the model ${duration(times.infer ?? 0)}`;
      requested.forEach((item, index) => showResult(item, answer.data[index]));
      announce(requested.map((item) => `${item.picture.name}: ${item.said.querySelector("strong")?.textContent}`).join("; "));
    } catch (error) {
      if (isAbort(error)) return;
      took.textContent = "";
      for (const item of requested) {
        item.frame.mark([]);
        replaceContent(item.said, errorNotice(error, run));
      }
    }
    results.removeAttribute("aria-busy");
  }

  function curl() {
    const params = new URLSearchParams();
    for (const [name, value] of Object.entries(query())) if (value !== null) params.set(name, String(value));
    const files = (shown.length ? shown : [{ picture: { name: "image.jpg" } }]).slice(0, 4);
    return `curl ${files.map((item) => `-F file=@${item.picture.name}`).join(" ")} '${location.origin}/classify?${params}'`;
  }

  return {
    title: "Classify",
    lead: "Classify images, with the model's confidence, or read strings of digits.",
    element,
    async show(name) {
      await started;
      if (![...select.options].some((option) => option.value === name)) return;
      await choose(name);
      await run();
    },
  };
}

/**
 * @param {Shown} one
 * @param {Answer} answer
 */
function showResult({ said, frame, picture, element }, answer) {
  frame.mark([]);
  element.classList.toggle("wide", Boolean(answer.digits));
  if (answer.problem) {
    replaceContent(said, errorNotice(new Problem(answer.problem)));
  } else if (answer.digits) {
    frame.mark(answer.digits.map((digit) => ({ box: digit.box, label: digit.class })));
    replaceContent(said, ...string(picture, answer.sequence ?? "", answer.confidence ?? 0, answer.digits));
  } else if (answer.rejected) {
    replaceContent(
      said,
      h("p", { class: "name" }, picture.name),
      h("strong", {}, "None of the model's classes"),
      h("p", { class: "hint" }, `The most similar class is ${answer.predictions?.[0].class}.`),
    );
  } else {
    replaceContent(said, h("p", { class: "name" }, picture.name), ranking(answer.predictions ?? []));
  }
}

/** @param {Prediction[]} predictions */
function ranking(predictions) {
  const rows = predictions.map((item, rank) =>
    h(
      "li",
      { class: "ranked" },
      h(rank ? "span" : "strong", {}, item.class),
      h("span", { class: "number" }, percent(item.confidence)),
      bar(item.confidence, rank ? "faint" : ""),
    ),
  );
  return h("ol", { class: "ranking" }, ...rows);
}

/**
 * @param {Picture} picture
 * @param {string} text
 * @param {number} confidence
 * @param {Digit[]} digits
 */
function string(picture, text, confidence, digits) {
  if (!text) return [h("p", { class: "name" }, picture.name), h("strong", {}, "There are no digits in this image.")];
  return [
    h("p", { class: "name" }, picture.name),
    h("strong", { class: "digits" }, text),
    h("p", {}, `${percent(confidence)} over all segmentations and readings of the image`),
    bar(confidence),
    h(
      "p",
      { class: "hint" },
      `Least certain digit: ${percent(Math.min(...digits.map((digit) => digit.confidence)))}, given its box.`,
    ),
  ];
}
