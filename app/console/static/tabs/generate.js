/** New pictures of a seed, and the way from one seed's sample to another's. */

import { Latest, address, ask, call, isAbort, save } from "../api.js";
import { detail, models } from "../catalogue.js";
import { command, during, empty, field, onChoice, slider, trouble, waiting } from "../controls.js";
import { announce, h, many, put } from "../dom.js";
import { modelSummary } from "../model_summary.js";

/** @typedef {import("../catalogue.js").Detail} Detail */

const SEED = { type: "text", inputmode: "numeric", pattern: "\\d{1,19}", maxlength: 19, autocomplete: "off" };
const FRAMES = 24;
const FRAME_MS = 90;

/** @returns {import("../app.js").Tab} */
export default function generate() {
  const latest = new Latest();
  /** @type {Detail | undefined} */
  let chosen;
  let drawn = false;
  /** @type {import("../api.js").Query} what is to be seen was asked for by this */
  let shown = {};

  const select = h("select", { disabled: true });
  const summary = h("div", { class: "summary" });
  const label = h("select");
  const labelled = field("Of which", label);
  const number = slider({ label: "Samples", min: 1, max: 64, step: 1, value: 20, onInput: soon });
  const truncation = slider({
    label: "Truncation",
    min: 0.1,
    max: 1.5,
    step: 0.05,
    value: 1,
    format: (value) => value.toFixed(2),
    onInput: soon,
    hint: "Less is more typical, more is more varied.",
  });
  const seed = h("input", { ...SEED, placeholder: "drawn at random" });
  const again = h("button", { type: "button" }, "Draw this seed");
  const fresh = h("button", { type: "button", class: "primary" }, "Draw new ones");
  const told = h("p", { class: "hint took" });
  const download = h("button", { type: "button", class: "quiet", hidden: true }, "Save as PNG");
  const grid = h("div");
  const terminal = command(() => `curl -o samples.png '${address("generate", query())}'`);
  const way = interpolation(() => ({ model: select.value, classes: chosen?.card.classes ?? [] }));

  onChoice(select, summary, async (name) => {
    await choose(name);
    if (drawn) await draw();
  });
  label.addEventListener("change", soon);
  seed.addEventListener("input", () => {
    again.disabled = !seed.value || !seed.checkValidity();
    terminal.update();
  });
  again.addEventListener("click", () => during(again, draw));
  download.addEventListener("click", () =>
    during(download, async () => {
      try {
        await save("generate", shown, "samples.png");
      } catch (error) {
        put(grid, trouble(error, draw));
      }
    }),
  );
  fresh.addEventListener("click", () => {
    seed.value = "";
    return during(fresh, draw);
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
        labelled,
        number.element,
        truncation.element,
        field("Seed", seed, "The same seed draws the same pictures, byte for byte."),
        h("div", { class: "row" }, fresh, again),
      ),
      terminal.element,
    ),
    h(
      "div",
      { class: "stage" },
      h("div", { class: "panel drawn" }, h("div", { class: "row spread" }, told, download), grid),
      way.element,
    ),
  );
  put(
    grid,
    empty(
      "Nothing is drawn yet",
      h("p", {}, "“Draw new ones” takes a seed at random and shows it, so that what pleases can be had again."),
    ),
  );
  start();

  async function start() {
    try {
      const found = await models("generate");
      if (!found.length) throw new Error("no generator");
      put(select, ...found.map((model) => h("option", { value: model.name }, model.name)));
      select.disabled = false;
      await choose(found[0].name);
    } catch (error) {
      fresh.disabled = again.disabled = true;
      const none = error instanceof Error && error.message === "no generator";
      put(
        grid,
        none
          ? empty(
              "No model draws here",
              h("p", {}, "Put one that does into the weights folder and start the service again."),
            )
          : trouble(error, start),
      );
    }
  }

  /** @param {string} name */
  async function choose(name) {
    select.value = name;
    chosen = await detail(name);
    put(summary, modelSummary(chosen));
    const classes = /** @type {string[]} */ (chosen.card.classes);
    labelled.hidden = classes.length === 0;
    put(label, h("option", { value: "" }, "each in turn"), ...classes.map((one) => h("option", { value: one }, one)));
    again.disabled = !seed.value;
    way.offer(classes);
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

  function soon() {
    terminal.update();
    clearTimeout(timer);
    if (drawn) timer = setTimeout(draw, 250);
  }

  async function draw() {
    const signal = latest.next();
    const asked = query();
    if (!drawn) put(grid, waiting("Drawing …", 6));
    grid.setAttribute("aria-busy", "true");
    try {
      const answer = await ask("generate", { query: { ...asked, format: "json" }, signal });
      drawn = true;
      // What was typed is kept as it was: such numbers may be larger than this language holds exactly.
      seed.value = asked.seed || String(answer.seed);
      again.disabled = false;
      show(answer.data);
      told.textContent = `Seed ${seed.value} · ${many(answer.data.length, "sample")} by ${answer.model}`;
      shown = query();
      download.hidden = false;
      announce(told.textContent);
    } catch (error) {
      if (isAbort(error)) return;
      put(grid, trouble(error, draw));
      drawn = false;
    }
    terminal.update();
    grid.removeAttribute("aria-busy");
  }

  /** @param {{b64_json: string, label: string | null}[]} data */
  function show(data) {
    const samples = data.map(({ b64_json, label: of }, index) =>
      h("img", {
        src: `data:image/png;base64,${b64_json}`,
        alt: of ? `Sample ${index + 1}: ${of}` : `Sample ${index + 1}`,
      }),
    );
    const sheet = h("div", { class: "sheet" }, ...samples);
    sheet.style.setProperty("--columns", String(Math.min(data.length, 10)));
    sheet.style.setProperty("--fewer", String(Math.min(data.length, 5)));
    put(grid, sheet);
  }

  return { title: "Generate", lead: "New pictures that never were, from a model and a seed.", element, hide: way.stop };
}

/**
 * @param {() => {model: string, classes: string[]}} asking
 */
function interpolation(asking) {
  const latest = new Latest();
  const from = h("input", { ...SEED, value: "1", required: true });
  const to = h("input", { ...SEED, value: "2", required: true });
  const label = h("select");
  const labelled = field("Of which", label);
  const go = h("button", { type: "button", class: "primary" }, "Walk");
  const place = h("div");
  /** @type {number | undefined} */
  let playing;

  go.addEventListener("click", () => during(go, walk));
  const element = h(
    "section",
    { class: "panel", "aria-label": "From one sample to another" },
    h("h2", {}, "From one sample to another"),
    h(
      "div",
      { class: "fields" },
      field("From seed", from),
      field("To seed", to),
      labelled,
      h("div", { class: "field bottom" }, go),
    ),
    place,
  );
  put(
    place,
    h(
      "p",
      { class: "hint" },
      "The first sample of one seed turns into that of the other, on the sphere where such noise lies.",
    ),
  );

  function stop() {
    clearInterval(playing);
    playing = undefined;
  }

  async function walk() {
    stop();
    const { model, classes } = asking();
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
      if (!isAbort(error)) put(place, trouble(error, walk));
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
      "aria-label": "The sample at this place of the way",
    });
    const context = canvas.getContext("2d");
    const at = slider({
      label: "Place on the way",
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
          // There and back again.
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
    put(
      place,
      h(
        "div",
        { class: "walk" },
        canvas,
        h("div", { class: "stack" }, at.element, h("div", { class: "row" }, play), film),
      ),
    );
    paint(0);
  }

  /** @param {string[]} classes */
  function offer(classes) {
    labelled.hidden = classes.length === 0;
    put(label, ...classes.map((one) => h("option", { value: one }, one)));
  }

  return { element, offer, stop };
}
