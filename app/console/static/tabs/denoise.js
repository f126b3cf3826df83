/** A picture without its noise, which is the picture's own or added here to see how much of it comes off again. */

import { Latest, address, call, form, isAbort, timings } from "../api.js";
import { detail, models } from "../catalogue.js";
import { compare } from "../compare.js";
import { command, empty, field, onChoice, segmented, slider, trouble, waiting } from "../controls.js";
import { announce, duration, h, put } from "../dom.js";
import { modelSummary } from "../model_summary.js";
import { noisy, pixels, png } from "../noise.js";
import { picker, pictureOf, release } from "../pictures.js";

/**
 * @typedef {import("../pictures.js").Picture} Picture
 * @typedef {{sent: string, clean: string, answer: string}} Urls
 */

const MOST_PIXELS = 1_000_000;

/** @returns {import("../app.js").Tab} */
export default function denoise() {
  const latest = new Latest();
  /** @type {Picture | null} */
  let picture = null;
  /** @type {any} */
  let card = null;
  /** @type {Urls | null} */
  let urls = null;
  /** @type {ReturnType<typeof compare> | null} */
  let compared = null;

  const select = h("select", { disabled: true });
  const summary = h("div", { class: "summary" });
  const sigma = slider({
    label: "Noise to add",
    min: 0,
    max: 100,
    step: 1,
    value: 25,
    format: (value) => (value ? `σ ${value} of 255` : "none"),
    onInput: soon,
    hint: "Gaussian, made in this page. None: the picture is cleaned of what it has.",
  });
  const strength = slider({
    label: "Strength",
    min: 0,
    max: 1,
    step: 0.05,
    value: 1,
    format: (value) => `${Math.round(value * 100)} %`,
    onInput: soon,
  });
  const left = segmented(
    "Left of the edge",
    [
      { value: "sent", label: "as sent" },
      { value: "clean", label: "without noise" },
    ],
    "sent",
    showLeft,
  );
  const gained = h("div", { class: "gained", "aria-live": "polite" });
  const place = h("div");
  const shelf = h("div", { class: "row" });
  const terminal = command(
    () =>
      `curl -F file=@noisy.png${sigma.value ? " -F reference=@clean.png" : ""} -o clean-again.png '${address("denoise", query())}'`,
  );

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
      picker({
        label: "A picture",
        examples: ["coffee.jpg", "cat.jpg", "astronaut.jpg"],
        onPictures: ([one]) => take(one),
        extra: shelf,
      }).element,
      h("div", { class: "panel" }, field("Model", select), summary, sigma.element, strength.element, left.element),
      terminal.element,
    ),
    h("div", { class: "stage" }, gained, place),
  );
  put(
    place,
    empty(
      "How much noise comes off again?",
      h(
        "p",
        {},
        "Choose a clean picture: this page adds the noise, the service takes it off, and the clean one says how near it came.",
      ),
    ),
  );
  start();

  async function start() {
    try {
      const found = await models("denoise");
      if (!found.length) {
        put(
          place,
          empty(
            "No model cleans pictures here",
            h("p", {}, "Put one that does into the weights folder and start the service again."),
          ),
        );
        return;
      }
      put(select, ...found.map((model) => h("option", { value: model.name }, model.name)));
      select.disabled = false;
      await choose(found[0].name);
      await offerDigits();
    } catch (error) {
      put(place, trouble(error, start));
    }
  }

  /** Where a model draws digits, there is something to clean for a model of digits. */
  async function offerDigits() {
    const artist = (await models("generate")).find((model) => model.name.includes("mnist"));
    if (!artist) return;
    const button = h("button", { type: "button", class: "quiet" }, "Digits, drawn for this");
    button.addEventListener("click", async () => {
      try {
        const drawn = await call("generate", { query: { model: artist.name, n: 10, seed: 7, grid: 5 } });
        take(pictureOf(await drawn.blob(), "digits.png"));
      } catch (error) {
        put(place, trouble(error));
      }
    });
    put(shelf, button);
  }

  /** @param {string} name */
  async function choose(name) {
    select.value = name;
    const chosen = await detail(name);
    card = chosen.card;
    put(summary, modelSummary(chosen));
    const trained = card.training?.recipe?.noise;
    sigma.max = Math.max(100, Math.round(trained?.sigma?.[1] ?? 100));
    sigma.value = Math.round(trained?.validation?.[0] ?? 25);
    terminal.update();
  }

  /** @param {Picture} next */
  function take(next) {
    release(picture);
    picture = next;
    run();
  }

  function query() {
    return { model: select.value, strength: strength.value === 1 ? null : strength.value };
  }

  /** @type {number | undefined} */
  let timer;

  function soon() {
    terminal.update();
    clearTimeout(timer);
    timer = setTimeout(run, 300);
  }

  async function run() {
    if (!picture || !card) return;
    const signal = latest.next();
    if (!urls) put(place, waiting("Cleaning …", 6));
    place.setAttribute("aria-busy", "true");
    try {
      const grey = card.preprocess.mode === "L";
      const { data, scaled } = await pixels(picture.blob, MOST_PIXELS, grey);
      const clean = await png(data);
      const sent = sigma.value ? await png(noisy(data, sigma.value, grey)) : clean;
      const body = form(sigma.value ? { file: sent, reference: clean } : { file: sent });
      const response = await call("denoise", { method: "POST", query: query(), body, signal });
      show(await response.blob(), sent, clean);
      tell(response, scaled);
    } catch (error) {
      if (isAbort(error)) return;
      forget();
      put(gained);
      put(place, trouble(error, run));
    }
    place.removeAttribute("aria-busy");
  }

  function forget() {
    for (const url of Object.values(urls ?? {})) URL.revokeObjectURL(url);
    urls = null;
    compared = null;
  }

  /**
   * @param {Blob} answer
   * @param {Blob} sent
   * @param {Blob} clean
   */
  function show(answer, sent, clean) {
    forget();
    urls = { sent: URL.createObjectURL(sent), clean: URL.createObjectURL(clean), answer: URL.createObjectURL(answer) };
    compared = compare({ url: urls.sent, name: "as sent" }, { url: urls.answer, name: "cleaned" });
    showLeft(left.value);
    const save = h("a", { class: "quiet", href: urls.answer, download: "clean.png" }, "Save as PNG");
    put(place, h("div", { class: "panel" }, compared.element, h("div", { class: "row end" }, save)));
  }

  /** @param {string} which */
  function showLeft(which) {
    if (!urls) return;
    compared?.setBefore(
      which === "clean" ? { url: urls.clean, name: "without noise" } : { url: urls.sent, name: "as sent" },
    );
  }

  /**
   * @param {Response} response
   * @param {boolean} scaled
   */
  function tell(response, scaled) {
    const [before, after] = ["x-psnr-before", "x-psnr"].map((name) => Number(response.headers.get(name)) || null);
    const took = `${duration(timings(response).total)}${scaled ? "; the picture was made smaller for this page" : ""}`;
    if (before === null || after === null) {
      put(
        gained,
        h("p", { class: "hint" }, `Cleaned in ${took}. Without added noise there is nothing to measure against.`),
      );
      return;
    }
    const gain = after - before;
    put(
      gained,
      figure("as sent", `${before.toFixed(1)} dB`),
      figure("cleaned", `${after.toFixed(1)} dB`),
      figure(
        gain < 0 ? "lost" : "gained",
        `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(1)} dB`,
        gain < 0 ? "bad" : "good",
      ),
      h("p", { class: "hint" }, `Peak signal-to-noise ratio against the picture without noise; ${took}.`),
    );
    announce(`From ${before.toFixed(1)} to ${after.toFixed(1)} decibels`);
  }

  return { title: "Denoise", lead: "A picture without its noise, and how near to the clean one that comes.", element };
}

/**
 * @param {string} name
 * @param {string} value
 * @param {string} [tone]
 */
function figure(name, value, tone = "") {
  return h("div", { class: `figure ${tone}` }, h("strong", {}, value), h("span", {}, name));
}
