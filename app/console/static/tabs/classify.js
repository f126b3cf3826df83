/** What is in these pictures, or which digits? */

import { Latest, Problem, call, form, isAbort, timings } from "../api.js";
import { detail, models, readsDigits } from "../catalogue.js";
import { bar, checkbox, command, empty, field, onChoice, slider, trouble, waiting } from "../controls.js";
import { announce, duration, h, many, percent, put } from "../dom.js";
import { framed } from "../drawing.js";
import { modelSummary } from "../model_summary.js";
import { picker, release } from "../pictures.js";

/**
 * @typedef {import("../pictures.js").Picture} Picture
 * @typedef {import("../catalogue.js").Detail} Detail
 * @typedef {{class: string, class_id: number, confidence: number}} Prediction
 * @typedef {Prediction & {box: number[]}} Digit
 * @typedef {{picture: Picture, frame: ReturnType<typeof framed>, said: HTMLElement, element: HTMLElement}} Shown
 */

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
  const top = slider({ label: "Classes to name", min: 1, max: 10, step: 1, value: 5, onInput: soon });
  const tta = checkbox("Average over several views", false, run);
  const sequence = checkbox("Read a string of digits", false, () => {
    settle();
    run();
  });
  const hint = h("p", { class: "hint" });
  const took = h("p", { class: "hint took" });
  const clear = h("button", { type: "button", class: "quiet", onclick: () => remove(...shown) }, "Clear");
  const results = h("div", { class: "results" });
  const terminal = command(curl);

  onChoice(select, summary, async (name) => {
    await choose(name);
    await run();
  });

  const element = h(
    "div",
    { class: "split answers" },
    h(
      "div",
      { class: "side" },
      picker({ label: "Your pictures", multiple: true, examples: EXAMPLES, onPictures: add }).element,
      h("div", { class: "panel" }, field("Model", select), summary, top.element, tta.element, sequence.element, hint),
      terminal.element,
    ),
    h("div", { class: "stage" }, h("div", { class: "row spread" }, took, clear), results),
  );
  settle();
  rest();
  const started = start();

  async function start() {
    try {
      const found = await models("classify");
      put(select, ...found.map((model) => h("option", { value: model.name }, model.name)));
      select.disabled = false;
      await choose(found[0].name);
    } catch (error) {
      put(results, trouble(error, start));
    }
  }

  /** @param {string} name */
  async function choose(name) {
    select.value = name;
    chosen = await detail(name);
    put(summary, modelSummary(chosen));
    settle();
  }

  /** What this model has is offered, and nothing else. */
  function settle() {
    const reads = chosen !== undefined && readsDigits(chosen.card);
    sequence.element.hidden = !reads;
    if (!reads) sequence.box.checked = false;
    const string = sequence.box.checked;
    tta.box.disabled = string || !chosen || chosen.card.tta === "none";
    if (tta.box.disabled) tta.box.checked = false;
    top.input.disabled = string;
    const classes = chosen?.card.classes.length ?? 10;
    top.max = Math.min(10, classes);
    hint.textContent = string ? "White on black or black on white; the digits may touch." : "";
    terminal.update();
  }

  /** @param {Picture[]} pictures */
  async function add(pictures) {
    if (pictures.some((picture) => picture.name === "digits.png")) await readThem();
    for (const picture of pictures) {
      const frame = framed(picture.url, picture.name);
      const said = h("div", { class: "said" });
      const drop = h("button", { type: "button", class: "close", "aria-label": `Remove ${picture.name}` }, "×");
      const card = h("article", { class: "result" }, frame.element, said, drop);
      const one = { picture, frame, said, element: card };
      drop.addEventListener("click", () => remove(one));
      shown.push(one);
    }
    put(results, ...shown.map((one) => one.element));
    await run();
  }

  /** The example of digits wants a model that reads them. */
  async function readThem() {
    for (const model of (await models("classify")).filter((one) => one.classes === 10)) {
      if (!readsDigits((await detail(model.name)).card) || !model.name.startsWith("lenet")) continue;
      await choose(model.name);
      sequence.box.checked = true;
      settle();
      return;
    }
  }

  /** @param {...Shown} gone */
  function remove(...gone) {
    for (const one of gone) {
      one.element.remove();
      release(one.picture);
    }
    shown = shown.filter((one) => !gone.includes(one));
    rest();
  }

  /** Nothing to be told about: say how to begin. */
  function rest() {
    clear.hidden = shown.length === 0;
    if (shown.length) return;
    latest.stop();
    took.textContent = "";
    put(
      results,
      empty(
        "What is in a picture?",
        h("p", {}, "Choose one, or several at once; drop or paste them; or click one of the examples."),
        h("p", {}, "Pictures go to this service and nowhere else, and it keeps none of them."),
      ),
    );
  }

  /** @type {number | undefined} */
  let timer;

  /** Once the slider rests. */
  function soon() {
    clearTimeout(timer);
    timer = setTimeout(run, 250);
    terminal.update();
  }

  function query() {
    return {
      model: select.value,
      top_k: sequence.box.checked ? null : top.value,
      tta: tta.box.checked || null,
      sequence: sequence.box.checked || null,
    };
  }

  async function run() {
    terminal.update();
    if (!shown.length || !select.value) return;
    clear.hidden = false;
    const signal = latest.next();
    const asked = [...shown];
    for (const one of asked) if (!one.said.hasChildNodes()) put(one.said, waiting("Looking …"));
    results.setAttribute("aria-busy", "true");
    try {
      const body = form({ file: asked.map((one) => one.picture.blob) });
      const response = await call("classify", { method: "POST", query: query(), body, signal });
      const answer = await response.json();
      const times = timings(response);
      took.textContent = `${many(asked.length, "picture")} in ${duration(times.total)}: decoding ${duration(times.decode ?? 0)}, the model ${duration(times.infer ?? 0)}`;
      asked.forEach((one, index) => tell(one, answer.data[index]));
      announce(asked.map((one) => `${one.picture.name}: ${one.said.querySelector("strong")?.textContent}`).join("; "));
    } catch (error) {
      if (isAbort(error)) return;
      took.textContent = "";
      for (const one of asked) {
        one.frame.mark([]);
        put(one.said, trouble(error, run));
      }
    }
    results.removeAttribute("aria-busy");
  }

  function curl() {
    const asked = new URLSearchParams();
    for (const [name, value] of Object.entries(query())) if (value !== null) asked.set(name, String(value));
    const files = (shown.length ? shown : [{ picture: { name: "picture.jpg" } }]).slice(0, 4);
    return `curl ${files.map((one) => `-F file=@${one.picture.name}`).join(" ")} '${location.origin}/classify?${asked}'`;
  }

  return {
    title: "Classify",
    lead: "What is in a picture, and how sure is the model? Or which digits stand there?",
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
 * @param {{predictions?: Prediction[], digits?: Digit[], sequence?: string, confidence?: number, problem?: any}} answer
 */
function tell({ said, frame, picture, element }, answer) {
  frame.mark([]);
  element.classList.toggle("wide", Boolean(answer.digits));
  if (answer.problem) {
    put(said, trouble(new Problem(answer.problem)));
  } else if (answer.digits) {
    frame.mark(answer.digits.map((digit) => ({ box: digit.box, label: digit.class })));
    put(said, ...string(picture, answer.sequence ?? "", answer.confidence ?? 0, answer.digits));
  } else {
    put(said, h("p", { class: "name" }, picture.name), ranking(answer.predictions ?? []));
  }
}

/** @param {Prediction[]} predictions */
function ranking(predictions) {
  const rows = predictions.map((one, rank) =>
    h(
      "li",
      { class: "ranked" },
      h(rank ? "span" : "strong", {}, one.class),
      h("span", { class: "number" }, percent(one.confidence)),
      bar(one.confidence, rank ? "faint" : ""),
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
  if (!text) return [h("p", { class: "name" }, picture.name), h("strong", {}, "There is no ink in this picture.")];
  return [
    h("p", { class: "name" }, picture.name),
    h("strong", { class: "digits" }, text),
    h("p", {}, `${percent(confidence)} over all ways to cut and read the picture`),
    bar(confidence),
    h(
      "p",
      { class: "hint" },
      `Weakest digit: ${percent(Math.min(...digits.map((digit) => digit.confidence)))}, its box taken for granted.`,
    ),
  ];
}
