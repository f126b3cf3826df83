/** Alerts as they arrive over the event stream, and the state of their deliveries. */

import { Latest, requestJson } from "../api.js";
import { attempt, badge, errorNotice, loading } from "../controls.js";
import { announce, formatClock, h, replaceContent, replaceRows } from "../dom.js";
import { eventStream } from "../event_stream.js";
import { polling } from "../polling.js";

/**
 * @typedef {{target: string, state: "pending" | "delivered" | "dead", attempts: number, problem: string | null}} Delivery
 * @typedef {{id: string, rule: string, sighting: string, collection: string, camera: string, ended_at: string,
 *   subject: string | null, state: "pending" | "delivered" | "dead", deliveries: Delivery[]}} Alert
 */

const EVERY_MS = 10_000; // deliveries change without an event
const PAGE = 5;
const MOST = 960; // the API returns at most 1000

/** @type {Record<import("../event_stream.js").StreamState, [text: string, tone: "good" | "warn" | "bad" | "plain"]>} */
const STREAM = {
  connecting: ["connecting …", "plain"],
  open: ["✓ connected", "good"],
  waiting: ["reconnecting …", "warn"],
  refused: ["✕ not connected", "bad"],
};

/** @type {Record<Alert["state"], [text: string, tone: "good" | "warn" | "bad"]>} */
const DELIVERY = { delivered: ["✓ delivered", "good"], pending: ["sending …", "warn"], dead: ["✕ not delivered", "bad"] };

/**
 * @param {{rules: Pick<ReturnType<typeof import("./rules.js").rules>, "nameOf" | "setName">, onAlert: () => void,
 *   onOpen: (sighting: string) => Promise<void>}} options `onAlert` is called for each new alert
 */
export function alerts({ rules, onAlert, onOpen }) {
  let limit = PAGE;
  const latest = new Latest();
  const state = h("span", { class: "row" });
  const list = h("ul", { class: "alerts", "aria-label": "Alerts" });
  const note = h("div", {}, loading("Loading alerts …", 1));
  const problem = h("div");
  const streamProblem = h("div");
  const more = h("button", { type: "button", class: "quiet", hidden: true }, "Older alerts");
  const element = h("div", { class: "stack" }, streamProblem, problem, note, list, h("div", { class: "row" }, more));
  const poll = polling(EVERY_MS, load, (error) => {
    replaceContent(note);
    replaceContent(problem, errorNotice(error, poll.now));
  });
  const stream = eventStream("alerts/stream", { onEvent: receive, onState: showState });
  /** Rows by the content that they show. @type {Map<string, HTMLElement>} */
  const rows = new Map();
  more.addEventListener("click", () => {
    limit = Math.min(limit + 2 * PAGE, MOST);
    poll.now();
  });
  document.addEventListener("visibilitychange", update);
  let active = false;

  /** Connect while the tab is visible: a service has a limited number of streams. */
  function update() {
    if (active && !document.hidden) stream.open();
    else stream.close();
  }

  async function load() {
    const answer = await requestJson("alerts", { query: { newest_first: true, limit }, signal: latest.next() });
    replaceContent(problem);
    show(answer.data);
  }

  /** @param {Alert[]} data newest first */
  function show(data) {
    replaceContent(note, data.length ? null : h("p", { class: "hint" }, "No alerts yet. A rule says which sightings cause one."));
    const present = data.map((alert) => {
      const key = JSON.stringify([alert, rules.nameOf(alert.rule)]);
      const row = rows.get(key) ?? alertRow(alert);
      rows.set(key, row);
      return row;
    });
    replaceRows(list, present);
    for (const [key, row] of rows) {
      if (!row.isConnected) rows.delete(key);
    }
    more.hidden = data.length < limit || limit >= MOST;
  }

  /**
   * @param {string} type
   * @param {string} text
   */
  function receive(type, text) {
    if (type !== "alert") return;
    const { data } = JSON.parse(text);
    rules.setName(data.rule, data.rule_name);
    announce(`Alert: ${data.rule_name}, ${data.name ?? data.subject ?? "unknown person"} at ${data.camera}`);
    poll.now();
    onAlert();
  }

  /**
   * @param {import("../event_stream.js").StreamState} next
   * @param {unknown} [error]
   */
  function showState(next, error) {
    replaceContent(state, badge(...STREAM[next]));
    replaceContent(streamProblem, next === "refused" ? errorNotice(error, stream.open) : null);
  }

  /** @param {Alert} alert */
  function alertRow(alert) {
    const message = h("div");
    const open = h("button", { type: "button", class: "quiet" }, "Show");
    const name = alert.subject ?? "Unknown person";
    open.setAttribute("aria-label", `Show the sighting of ${name} at ${formatClock(alert.ended_at)}`);
    open.addEventListener("click", () => attempt(open, message, () => onOpen(alert.sighting)));
    const resend = h("button", { type: "button" }, "Send again");
    resend.addEventListener("click", () =>
      attempt(resend, message, async () => {
        await requestJson(`alerts/${encodeURIComponent(alert.id)}/resend`, { method: "POST" });
        poll.now();
      }),
    );
    const problems = [...new Set(alert.deliveries.map((delivery) => delivery.problem).filter(Boolean))];
    return h(
      "li",
      { class: "alert" },
      h(
        "div",
        { class: "alert-head" },
        h("div", { class: "row" }, h("strong", {}, name), alert.subject === null ? badge("? unknown", "warn") : badge("✓ match", "good")),
        open,
      ),
      h("span", { class: "hint" }, `${rules.nameOf(alert.rule)} · ${alert.collection} · ${alert.camera} · ${formatClock(alert.ended_at)}`),
      alert.deliveries.length
        ? h("div", { class: "row" }, badge(...DELIVERY[alert.state]), alert.state === "dead" ? resend : null)
        : null,
      alert.state === "delivered" ? null : h("p", { class: "hint" }, problems.join("; ")),
      message,
    );
  }

  return {
    element,
    state,
    poll,
    /** @param {boolean} value */
    set active(value) {
      active = poll.active = value;
      update();
    },
  };
}
