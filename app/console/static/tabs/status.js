/** The service's health and metrics, polled every two seconds while this tab is visible. */

import { Problem, requestJson, call } from "../api.js";
import { badge, errorNotice } from "../controls.js";
import { count, duration, h, plural, replaceContent } from "../dom.js";
import { parse, quantile, total } from "../prometheus.js";
import { sparkline } from "../sparkline.js";

/** @typedef {import("../prometheus.js").Sample} Sample */
/** @typedef {{at: number, samples: Sample[]}} Reading */

const EVERY_MS = 2000;
// Requests of this page and of probes are not counted.
const EXCLUDED_ROUTES = new Set(["/metrics", "/health/live", "/health/ready", "/web/{name:path}", "/"]);

/** @param {Record<string, string>} labels */
const isCounted = (labels) => !EXCLUDED_ROUTES.has(labels.route);

/** @param {number} seconds */
const formatSeconds = (seconds) => duration(seconds * 1000);

/** @returns {import("../app.js").Tab} */
export default function status() {
  const health = h("div", { class: "panel health" });
  const tiles = {
    rate: sparkline("Requests", (value) => `${value.toFixed(1)} /s`, "responses, except to this page"),
    median: sparkline("Latency, median", formatSeconds, "from the request's headers to the last byte"),
    tail: sparkline("Latency, 95 %", formatSeconds, "1 in 20 requests takes longer"),
    wait: sparkline("Queue", formatSeconds, "mean time an image waits for its model"),
    flight: sparkline("In flight", count, "requests being processed"),
    shed: sparkline("Shed", (value) => `${value.toFixed(1)} /s`, "refused with 429: over capacity"),
    memory: sparkline("Memory", (value) => `${count(Math.round(value / 2 ** 20))} MiB`, "resident"),
    processor: sparkline("CPU", (value) => `${Math.round(value * 100)} %`, "of one core"),
  };
  const routes = h("div", { class: "panel" });
  const pause = h("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const problem = h("div");
  const element = h(
    "div",
    { class: "stack" },
    problem,
    health,
    h("div", { class: "row spread" }, h("h2", {}, "Last three minutes"), pause),
    h("div", { class: "tiles" }, ...Object.values(tiles).map((tile) => tile.element)),
    routes,
  );
  /** @type {Reading | undefined} */
  let last;
  /** @type {number | undefined} */
  let timer;
  let visible = false;
  let paused = false;

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    updatePolling();
  });
  document.addEventListener("visibilitychange", updatePolling);

  /** Poll now if the tab is visible and not paused, else stop polling. */
  function updatePolling() {
    clearTimeout(timer);
    if (visible && !paused && !document.hidden) poll();
    else last = undefined;
  }

  async function poll() {
    try {
      const [text] = await Promise.all([call("metrics").then((answer) => answer.text()), showHealth(health)]);
      const reading = { at: performance.now(), samples: parse(text) };
      if (last) push(last, reading);
      last = reading;
      replaceContent(routes, ...table(reading.samples));
      replaceContent(problem);
    } catch (error) {
      last = undefined;
      replaceContent(problem, errorNotice(error));
    }
    clearTimeout(timer);
    if (visible && !paused && !document.hidden) timer = setTimeout(poll, EVERY_MS);
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
      quantile(before.samples, after.samples, "vestibule_request_seconds", share, isCounted);
    const waited = since("vestibule_queue_seconds_count", undefined);
    tiles.rate.push(since("vestibule_requests_total", isCounted) / seconds);
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
    lead: "The service's health and current load.",
    element,
    show() {
      visible = true;
      updatePolling();
    },
    hide() {
      visible = false;
      updatePolling();
    },
  };
}

/** @param {HTMLElement} place */
async function showHealth(place) {
  /** @type {{status: string, models: Record<string, string>}} */
  let ready = { status: "not ready", models: {} };
  let words = "";
  try {
    ready = await requestJson("health/ready");
  } catch (error) {
    if (!(error instanceof Problem) || error.status === 0) throw error;
    words = error.detail;
  }
  const loaded = Object.entries(ready.models);
  const isReady = ready.status === "ready";
  replaceContent(
    place,
    h(
      "div",
      { class: "row" },
      badge(isReady ? "✓ ready" : "✕ not ready", isReady ? "good" : "bad"),
      h("strong", {}, isReady ? "The service is ready" : "The service is running but not ready"),
      words,
    ),
    h("p", { class: "hint" }, `${plural(loaded.length, "model")} loaded; the others load with their first request.`),
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
  const counts = samples.filter((item) => item.name === "vestibule_requests_total" && isCounted(item.labels));
  const routes = [...new Set(counts.map((item) => item.labels.route))].map((route) => {
    const ofRoute = (/** @type {Record<string, string>} */ labels) => labels.route === route;
    const requests = total(counts, "vestibule_requests_total", ofRoute);
    const failed = total(counts, "vestibule_requests_total", (labels) => ofRoute(labels) && Number(labels.status) >= 400);
    const seconds =
      total(samples, "vestibule_request_seconds_sum", ofRoute) / total(samples, "vestibule_request_seconds_count", ofRoute);
    return { route, requests, failed, seconds, p95: quantile([], samples, "vestibule_request_seconds", 0.95, ofRoute) };
  });
  routes.sort((a, b) => b.requests - a.requests);
  const title = h("h2", {}, "Since the start");
  if (!routes.length) return [title, h("p", { class: "hint" }, "No requests yet.")];
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
            ...["Route", "Requests", "Errors", "Mean", "95 %"].map((name) =>
              h("th", { scope: "col" }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          ...routes.map((item) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, h("code", {}, item.route)),
              number(count(item.requests)),
              number(count(item.failed)),
              number(formatSeconds(item.seconds)),
              number(item.p95 === null ? "–" : formatSeconds(item.p95)),
            ),
          ),
        ),
      ),
    ),
  ];
}
