/** Generate images from a seed, and interpolate between the samples of two seeds. */

import { Latest, address, requestJson, call, isAbort, save } from "../api.js";
import { detail, models } from "../model_cards.js";
import { terminalCommand, whileBusy, emptyState, field, onSelect, slider, errorNotice, loading } from "../controls.js";
import { announce, h, plural, replaceContent } from "../dom.js";
import { modelSummary } from "../model_summary.js";

/** @typedef {import("../model_cards.js").Detail} Detail */

const SEED = { type: "text", inputmode: "numeric", pattern: "\\d{1,19}", maxlength: 19, autocomplete: "off" };
const FRAMES = 24;
const FRAME_MS = 90;

/** @returns {import("../app.js").Tab} */
export default function generate() {
  const latest = new Latest();
  /** @type {Detail | undefined} */
  let chosen;
  let generated = false;
  /** @type {import("../api.js").Query} the query of the visible samples */
  let shown = {};

  const select = h("select", { disabled: true });
  const summary = h("div", { class: "summary" });
  const label = h("select");
  const labelField = field("Class", label);
  const number = slider({ label: "Samples", min: 1, max: 64, step: 1, value: 20, onInput: drawSoon });
  const truncation = slider({
    label: "Truncation",
    min: 0.1,
    max: 1.5,
    step: 0.05,
    value: 1,
    format: (value) => value.toFixed(2),
    onInput: drawSoon,
    hint: "Smaller values give more typical samples, larger ones more varied samples.",
  });
  const seed = h("input", { ...SEED, placeholder: "random" });
  const again = h("button", { type: "button" }, "Generate with this seed");
  const fresh = h("button", { type: "button", class: "primary" }, "Generate new samples");
  const caption = h("p", { class: "hint took" });
  const download = h("button", { type: "button", class: "quiet", hidden: true }, "Save as PNG");
  const grid = h("div");
  const terminal = terminalCommand(() => `curl -o samples.png '${address("generate", query())}'`);
  const interpolator = interpolation(() => ({ model: select.value, classes: chosen?.card.classes ?? [] }));

  onSelect(select, summary, async (name) => {
    await choose(name);
    if (generated) await draw();
  });
  label.addEventListener("change", drawSoon);
  seed.addEventListener("input", () => {
    again.disabled = !seed.value || !seed.checkValidity();
    terminal.update();
  });
  again.addEventListener("click", () => whileBusy(again, draw));
  download.addEventListener("click", () =>
    whileBusy(download, async () => {
      try {
        await save("generate", shown, "samples.png");
      } catch (error) {
        replaceContent(grid, errorNotice(error, draw));
      }
    }),
  );
  fresh.addEventListener("click", () => {
    seed.value = "";
    return whileBusy(fresh, draw);
  });

  const element = h(
    "div",
    { class: "split" },
    h(
      "div",
      { class: "side" },
      h(
        "div",
        { class: "panel" },
        field("Model", select),
        summary,
        labelField,
        number.element,
        truncation.element,
        field("Seed", seed, "The same seed gives the same images, byte for byte."),
        h("div", { class: "row" }, fresh, again),
      ),
      terminal.element,
    ),
    h(
      "div",
      { class: "stage" },
      h("div", { class: "panel generated" }, h("div", { class: "row spread" }, caption, download), grid),
      interpolator.element,
    ),
  );
  replaceContent(
    grid,
    emptyState(
      "No samples yet",
      h("p", {}, "“Generate new samples” uses a random seed and shows it, so that you can repeat it."),
    ),
  );
  start();

  async function start() {
    try {
      const available = await models("generate");
      if (!available.length) throw new Error("no generator");
      replaceContent(select, ...available.map((model) => h("option", { value: model.name }, model.name)));
      select.disabled = false;
      await choose(available[0].name);
    } catch (error) {
      fresh.disabled = again.disabled = true;
      const none = error instanceof Error && error.message === "no generator";
      replaceContent(
        grid,
        none
          ? emptyState(
              "There is no generator",
              h("p", {}, "Add one to the weights folder and restart the service."),
            )
          : errorNotice(error, start),
      );
    }
  }

  /** @param {string} name */
  async function choose(name) {
    select.value = name;
    chosen = await detail(name);
    replaceContent(summary, modelSummary(chosen));
    const classes = /** @type {string[]} */ (chosen.card.classes);
    labelField.hidden = classes.length === 0;
    replaceContent(label, h("option", { value: "" }, "all in turn"), ...classes.map((item) => h("option", { value: item }, item)));
    again.disabled = !seed.value;
    interpolator.setClasses(classes);
    terminal.update();
  }

  function query() {
    return {
      model: select.value,
      n: number.value,
      seed: seed.value,
      label: label.value,
      truncation: truncation.value === 1 ? null : truncation.value,
    };
  }

  /** @type {number | undefined} */
  let timer;

  function drawSoon() {
    terminal.update();
    clearTimeout(timer);
    if (generated) timer = setTimeout(draw, 250);
  }

  async function draw() {
    const signal = latest.next();
    const params = query();
    if (!generated) replaceContent(grid, loading("Generating …", 6));
    grid.setAttribute("aria-busy", "true");
    try {
      const answer = await requestJson("generate", { query: { ...params, format: "json" }, signal });
      generated = true;
      // Keep the typed text: a seed may be too large for JavaScript's numbers.
      seed.value = params.seed || String(answer.seed);
      again.disabled = false;
      show(answer.data);
      caption.textContent = `Seed ${seed.value} · ${plural(answer.data.length, "sample")} by ${answer.model}`;
      shown = query();
      download.hidden = false;
      announce(caption.textContent);
    } catch (error) {
      if (isAbort(error)) return;
      replaceContent(grid, errorNotice(error, draw));
      generated = false;
    }
    terminal.update();
    grid.removeAttribute("aria-busy");
  }

  /** @param {{b64_json: string, label: string | null}[]} data */
  function show(data) {
    const samples = data.map(({ b64_json, label: name }, index) =>
      h("img", {
        src: `data:image/png;base64,${b64_json}`,
        alt: name ? `Sample ${index + 1}: ${name}` : `Sample ${index + 1}`,
      }),
    );
    const sheet = h("div", { class: "sheet" }, ...samples);
    sheet.style.setProperty("--columns", String(Math.min(data.length, 10)));
    sheet.style.setProperty("--fewer", String(Math.min(data.length, 5)));
    replaceContent(grid, sheet);
  }

  return { title: "Generate", lead: "Generate new images from a model and a seed.", element, hide: interpolator.stop };
}

/**
 * The panel that interpolates between two samples.
 * @param {() => {model: string, classes: string[]}} selection the selected model and its classes
 */
function interpolation(selection) {
  const latest = new Latest();
  const from = h("input", { ...SEED, value: "1", required: true });
  const to = h("input", { ...SEED, value: "2", required: true });
  const label = h("select");
  const labelField = field("Class", label);
  const go = h("button", { type: "button", class: "primary" }, "Interpolate");
  const place = h("div");
  /** @type {number | undefined} */
  let playing;

  go.addEventListener("click", () => whileBusy(go, interpolate));
  const element = h(
    "section",
    { class: "panel", "aria-label": "Interpolation" },
    h("h2", {}, "Interpolation"),
    h(
      "div",
      { class: "fields" },
      field("From seed", from),
      field("To seed", to),
      labelField,
      h("div", { class: "field bottom" }, go),
    ),
    place,
  );
  replaceContent(
    place,
    h(
      "p",
      { class: "hint" },
      "Interpolates from the first sample of one seed to that of the other, along the sphere of latent vectors.",
    ),
  );

  function stop() {
    clearInterval(playing);
    playing = undefined;
  }

  async function interpolate() {
    stop();
    const { model, classes } = selection();
    const query = {
      model,
      from_seed: from.value,
      to_seed: to.value,
      steps: FRAMES,
      label: classes.length ? label.value : null,
    };
    try {
      const strip = await (await call("generate/interpolate", { query, signal: latest.next() })).blob();
      show(await createImageBitmap(strip), strip);
    } catch (error) {
      if (!isAbort(error)) replaceContent(place, errorNotice(error, interpolate));
    }
  }

  /**
   * @param {ImageBitmap} bitmap `FRAMES` frames side by side
   * @param {Blob} strip
   */
  function show(bitmap, strip) {
    const [width, height] = [bitmap.width / FRAMES, bitmap.height];
    const canvas = h("canvas", {
      width,
      height,
      class: "frame",
      role: "img",
      "aria-label": "The sample at this position",
    });
    const context = canvas.getContext("2d");
    const at = slider({
      label: "Position",
      min: 0,
      max: FRAMES - 1,
      step: 1,
      value: 0,
      format: (value) => `${Math.round((value / (FRAMES - 1)) * 100)} %`,
      onInput: paint,
    });
    /** @param {number} frame */
    function paint(frame) {
      context?.drawImage(bitmap, frame * width, 0, width, height, 0, 0, width, height);
    }
    const play = h("button", { type: "button" }, "Play");
    play.addEventListener("click", () => {
      if (playing !== undefined) stop();
      else
        playing = setInterval(() => {
          if (!canvas.isConnected) return stop();
          // Reverse at both ends.
          step = at.value + step < 0 || at.value + step >= FRAMES ? -step : step;
          at.value += step;
          paint(at.value);
        }, FRAME_MS);
      play.textContent = playing === undefined ? "Play" : "Pause";
    });
    let step = 1;
    const url = URL.createObjectURL(strip);
    const film = h("img", { src: url, alt: `All ${FRAMES} steps side by side`, class: "film" });
    film.addEventListener("load", () => URL.revokeObjectURL(url));
    replaceContent(
      place,
      h(
        "div",
        { class: "interpolated" },
        canvas,
        h("div", { class: "stack" }, at.element, h("div", { class: "row" }, play), film),
      ),
    );
    paint(0);
  }

  /** @param {string[]} classes */
  function setClasses(classes) {
    labelField.hidden = classes.length === 0;
    replaceContent(label, ...classes.map((item) => h("option", { value: item }, item)));
  }

  return { element, setClasses, stop };
}
