/** How the service is, every two seconds for as long as this tab is looked at. */

import { Problem, ask, call } from "../api.js";
import { badge, trouble } from "../controls.js";
import { count, duration, h, many, put } from "../dom.js";
import { parse, quantile, total } from "../prometheus.js";
import { sparkline } from "../sparkline.js";

/** @typedef {import("../prometheus.js").Sample} Sample */
/** @typedef {{at: number, samples: Sample[]}} Reading */

const EVERY_MS = 2000;
// What this page and probes ask is not what the service is for.
const OWN = new Set(["/metrics", "/health/live", "/health/ready", "/web/{name:path}", "/"]);

/** @param {Record<string, string>} labels */
const asked = (labels) => !OWN.has(labels.route);

/** @param {number} seconds */
const took = (seconds) => duration(seconds * 1000);

/** @returns {import("../app.js").Tab} */
export default function status() {
  const health = h("div", { class: "panel health" });
  const tiles = {
    rate: sparkline("Requests", (value) => `${value.toFixed(1)} /s`, "answered, without this page's own"),
    median: sparkline("Latency, median", took, "from the first header to the last byte"),
    tail: sparkline("Latency, 95 %", took, "one request in twenty takes longer"),
    wait: sparkline("Queue", took, "mean wait of a picture for its model"),
    flight: sparkline("Under way", count, "admitted and not yet answered"),
    shed: sparkline("Turned away", (value) => `${value.toFixed(1)} /s`, "answered 429, for want of room"),
    memory: sparkline("Memory", (value) => `${count(Math.round(value / 2 ** 20))} MiB`, "resident"),
    processor: sparkline("Processor", (value) => `${Math.round(value * 100)} %`, "of one core"),
  };
  const routes = h("div", { class: "panel" });
  const pause = h("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const problem = h("div");
  const element = h(
    "div",
    { class: "stack" },
    problem,
    health,
    h("div", { class: "row spread" }, h("h2", {}, "The last three minutes"), pause),
    h("div", { class: "tiles" }, ...Object.values(tiles).map((tile) => tile.element)),
    routes,
  );
  /** @type {Reading | undefined} */
  let last;
  /** @type {number | undefined} */
  let timer;
  let seen = false;
  let paused = false;

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    wake();
  });
  document.addEventListener("visibilitychange", wake);

  /** Ask now if somebody looks, and not at all if nobody does. */
  function wake() {
    clearTimeout(timer);
    if (seen && !paused && !document.hidden) poll();
    else last = undefined;
  }

  async function poll() {
    try {
      const [text] = await Promise.all([call("metrics").then((answer) => answer.text()), showHealth(health)]);
      const reading = { at: performance.now(), samples: parse(text) };
      if (last) push(last, reading);
      last = reading;
      put(routes, ...table(reading.samples));
      put(problem);
    } catch (error) {
      last = undefined;
      put(problem, trouble(error));
    }
    clearTimeout(timer);
    if (seen && !paused && !document.hidden) timer = setTimeout(poll, EVERY_MS);
  }

  /**
   * @param {Reading} before
   * @param {Reading} after
   */
  function push(before, after) {
    const seconds = (after.at - before.at) / 1000;
    const since = (/** @type {string} */ name, /** @type {any} */ chosen) =>
      total(after.samples, name, chosen) - total(before.samples, name, chosen);
    const latency = (/** @type {number} */ share) =>
      quantile(before.samples, after.samples, "vestibule_request_seconds", share, asked);
    const waited = since("vestibule_queue_seconds_count", undefined);
    tiles.rate.push(since("vestibule_requests_total", asked) / seconds);
    tiles.median.push(latency(0.5));
    tiles.tail.push(latency(0.95));
    tiles.wait.push(waited ? since("vestibule_queue_seconds_sum", undefined) / waited : null);
    tiles.flight.push(total(after.samples, "vestibule_requests_in_flight"));
    tiles.shed.push(since("vestibule_shed_total", undefined) / seconds);
    tiles.memory.push(total(after.samples, "process_resident_memory_bytes"));
    tiles.processor.push(since("process_cpu_seconds_total", undefined) / seconds);
  }

  return {
    title: "Status",
    lead: "Whether the service is well, and what it is doing now.",
    element,
    show() {
      seen = true;
      wake();
    },
    hide() {
      seen = false;
      wake();
    },
  };
}

/** @param {HTMLElement} place */
async function showHealth(place) {
  /** @type {{status: string, models: Record<string, string>}} */
  let ready = { status: "not ready", models: {} };
  let words = "";
  try {
    ready = await ask("health/ready");
  } catch (error) {
    if (!(error instanceof Problem) || error.status === 0) throw error;
    words = error.detail;
  }
  const loaded = Object.entries(ready.models);
  const well = ready.status === "ready";
  put(
    place,
    h(
      "div",
      { class: "row" },
      badge(well ? "✓ ready" : "✕ not ready", well ? "good" : "bad"),
      h("strong", {}, well ? "The service is ready" : "The service answers, and is not ready"),
      words,
    ),
    h("p", { class: "hint" }, `${many(loaded.length, "model")} loaded; the others are when they are first asked for.`),
    h(
      "ul",
      { class: "row" },
      ...loaded.map(([name, version]) =>
        h("li", {}, h("a", { class: "chip", href: `#models/${name}`, title: `weights ${version}` }, name)),
      ),
    ),
  );
}

/** @param {Sample[]} samples */
function table(samples) {
  const counts = samples.filter((one) => one.name === "vestibule_requests_total" && asked(one.labels));
  const routes = [...new Set(counts.map((one) => one.labels.route))].map((route) => {
    const here = (/** @type {Record<string, string>} */ labels) => labels.route === route;
    const requests = total(counts, "vestibule_requests_total", here);
    const failed = total(counts, "vestibule_requests_total", (labels) => here(labels) && Number(labels.status) >= 400);
    const seconds =
      total(samples, "vestibule_request_seconds_sum", here) / total(samples, "vestibule_request_seconds_count", here);
    return { route, requests, failed, seconds, p95: quantile([], samples, "vestibule_request_seconds", 0.95, here) };
  });
  routes.sort((a, b) => b.requests - a.requests);
  const title = h("h2", {}, "Since it was started");
  if (!routes.length) return [title, h("p", { class: "hint" }, "Nothing was asked yet.")];
  const number = (/** @type {string} */ text) => h("td", { class: "number" }, text);
  return [
    title,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": "Requests by route" },
      h(
        "table",
        { class: "wide" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ...["Route", "Requests", "Refused or failed", "Mean", "95 %"].map((name) =>
              h("th", { scope: "col" }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          ...routes.map((one) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, h("code", {}, one.route)),
              number(count(one.requests)),
              number(count(one.failed)),
              number(took(one.seconds)),
              number(one.p95 === null ? "–" : took(one.p95)),
            ),
          ),
        ),
      ),
    ),
  ];
}
