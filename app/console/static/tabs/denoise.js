/** Denoise an image; noise can be added first, to measure how well it is removed. */

import { Latest, address, call, form, isAbort, timings } from "../api.js";
import { detail, models } from "../model_cards.js";
import { comparison } from "../compare.js";
import { terminalCommand, emptyState, field, onSelect, segmented, slider, errorNotice, loading } from "../controls.js";
import { announce, duration, h, replaceContent } from "../dom.js";
import { modelSummary } from "../model_summary.js";
import { noisy, pixels, png } from "../noise.js";
import { picker, toPicture, release } from "../image_picker.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {{sent: string, clean: string, answer: string}} Urls
 */

const MAX_PIXELS = 1_000_000;

/** @returns {import("../app.js").Tab} */
export default function denoise() {
  const latest = new Latest();
  /** @type {Picture | null} */
  let picture = null;
  /** @type {any} */
  let card = null;
  /** @type {Urls | null} */
  let urls = null;
  /** @type {ReturnType<typeof comparison> | null} */
  let compared = null;

  const select = h("select", { disabled: true });
  const summary = h("div", { class: "summary" });
  const sigma = slider({
    label: "Added noise",
    min: 0,
    max: 100,
    step: 1,
    value: 25,
    format: (value) => (value ? `σ ${value} of 255` : "none"),
    onInput: runSoon,
    hint: "Gaussian noise, added in this page. With none, the image is denoised as it is.",
  });
  const strength = slider({
    label: "Strength",
    min: 0,
    max: 1,
    step: 0.05,
    value: 1,
    format: (value) => `${Math.round(value * 100)} %`,
    onInput: runSoon,
  });
  const left = segmented(
    "Left image",
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
  const terminal = terminalCommand(
    () =>
      `curl -F file=@noisy.png${sigma.value ? " -F reference=@clean.png" : ""} -o clean-again.png '${address("denoise", query())}'`,
  );

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
      picker({
        label: "Image",
        examples: ["coffee.jpg", "cat.jpg", "astronaut.jpg"],
        onPictures: ([first]) => take(first),
        extra: shelf,
      }).element,
      h("div", { class: "panel" }, field("Model", select), summary, sigma.element, strength.element, left.element),
      terminal.element,
    ),
    h("div", { class: "stage" }, gained, place),
  );
  replaceContent(
    place,
    emptyState(
      "Denoise an image",
      h(
        "p",
        {},
        "Choose a clean image: this page adds noise, the service removes it, and the result is compared with the clean image.",
      ),
    ),
  );
  start();

  async function start() {
    try {
      const available = await models("denoise");
      if (!available.length) {
        replaceContent(
          place,
          emptyState(
            "There is no denoiser",
            h("p", {}, "Add one to the weights folder and restart the service."),
          ),
        );
        return;
      }
      replaceContent(select, ...available.map((model) => h("option", { value: model.name }, model.name)));
      select.disabled = false;
      await choose(available[0].name);
      await offerDigits();
    } catch (error) {
      replaceContent(place, errorNotice(error, start));
    }
  }

  /** Offer generated digits as input, if there is a generator of digits. */
  async function offerDigits() {
    const generator = (await models("generate")).find((model) => model.name.includes("mnist"));
    if (!generator) return;
    const button = h("button", { type: "button", class: "quiet" }, "Generated digits");
    button.addEventListener("click", async () => {
      try {
        const digits = await call("generate", { query: { model: generator.name, n: 10, seed: 7, grid: 5 } });
        take(toPicture(await digits.blob(), "digits.png"));
      } catch (error) {
        replaceContent(place, errorNotice(error));
      }
    });
    replaceContent(shelf, button);
  }

  /** @param {string} name */
  async function choose(name) {
    select.value = name;
    const chosen = await detail(name);
    card = chosen.card;
    replaceContent(summary, modelSummary(chosen));
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

  function runSoon() {
    terminal.update();
    clearTimeout(timer);
    timer = setTimeout(run, 300);
  }

  async function run() {
    if (!picture || !card) return;
    const signal = latest.next();
    if (!urls) replaceContent(place, loading("Denoising …", 6));
    place.setAttribute("aria-busy", "true");
    try {
      const grey = card.preprocess.mode === "L";
      const { data, scaled } = await pixels(picture.blob, MAX_PIXELS, grey);
      const clean = await png(data);
      const sent = sigma.value ? await png(noisy(data, sigma.value, grey)) : clean;
      const body = form(sigma.value ? { file: sent, reference: clean } : { file: sent });
      const response = await call("denoise", { method: "POST", query: query(), body, signal });
      show(await response.blob(), sent, clean);
      showGain(response, scaled);
    } catch (error) {
      if (isAbort(error)) return;
      forget();
      replaceContent(gained);
      replaceContent(place, errorNotice(error, run));
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
    compared = comparison({ url: urls.sent, name: "as sent" }, { url: urls.answer, name: "denoised" });
    showLeft(left.value);
    const save = h("a", { class: "quiet", href: urls.answer, download: "clean.png" }, "Save as PNG");
    replaceContent(place, h("div", { class: "panel" }, compared.element, h("div", { class: "row end" }, save)));
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
  function showGain(response, scaled) {
    const [before, after] = ["x-psnr-before", "x-psnr"].map((name) => Number(response.headers.get(name)) || null);
    const took = `${duration(timings(response).total)}${scaled ? "; the image was scaled down" : ""}`;
    if (before === null || after === null) {
      replaceContent(
        gained,
        h("p", { class: "hint" }, `Denoised in ${took}. Without added noise there is no reference to compare with.`),
      );
      return;
    }
    const gain = after - before;
    replaceContent(
      gained,
      figure("as sent", `${before.toFixed(1)} dB`),
      figure("denoised", `${after.toFixed(1)} dB`),
      figure(
        gain < 0 ? "lost" : "gained",
        `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(1)} dB`,
        gain < 0 ? "bad" : "good",
      ),
      h("p", { class: "hint" }, `Peak signal-to-noise ratio (PSNR) against the image without noise; ${took}.`),
    );
    announce(`From ${before.toFixed(1)} to ${after.toFixed(1)} decibels`);
  }

  return { title: "Denoise", lead: "Remove noise from an image and measure the improvement.", element };
}

/**
 * @param {string} name
 * @param {string} value
 * @param {string} [tone]
 */
function figure(name, value, tone = "") {
  return h("div", { class: `figure ${tone}` }, h("strong", {}, value), h("span", {}, name));
}
