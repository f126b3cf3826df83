/** The rules of alerts: list, create and delete them. Their targets are set by the API. */

import { requestJson } from "../api.js";
import { attempt, confirmDialog, errorNotice, field, segmented } from "../controls.js";
import { h, plural, replaceContent } from "../dom.js";

/**
 * @typedef {{id: string, collection: string, name: string, trigger: "match" | "unknown", cameras: string[],
 *   cooldown_s: number, where: unknown, schedule: unknown, targets: unknown[]}} Rule
 */

const TRIGGERS = [
  { value: "unknown", label: "Unknown people" },
  { value: "match", label: "Subjects" },
];

/** @param {{onChanged: () => void}} options called after the rules are loaded and after each change */
export function rules({ onChanged }) {
  let collection = "";
  /** @type {Map<string, string>} */
  const names = new Map();
  const list = h("ul", { class: "receipts" });
  const problem = h("div");
  const message = h("div");
  const name = h("input", { type: "text", required: true, maxlength: 256, autocomplete: "off" });
  const trigger = segmented("Alert on", TRIGGERS, "unknown", () => {});
  const cooldown = h(
    "select",
    { value: "60" },
    ...[0, 60, 300, 3600].map((seconds) => h("option", { value: seconds }, seconds ? formatPause(seconds) : "none")),
  );
  const create = h("button", { type: "submit" }, "Create rule");
  const creation = h(
    "form",
    { class: "stack", "aria-label": "New rule" },
    field("Name of the rule", name),
    trigger.element,
    field("Pause after an alert", cooldown, "For the same subject at the same camera; for unknown people, at the same camera."),
    create,
    message,
  );
  const summary = h("summary", {}, "Rules");
  const element = h(
    "details",
    { class: "rules" },
    summary,
    h(
      "div",
      { class: "stack" },
      problem,
      list,
      creation,
      h(
        "p",
        { class: "hint" },
        "The API also sets cameras, metadata, a schedule, and targets such as webhooks and MQTT: ",
        h("a", { href: "docs#/alerts" }, "documentation"),
        ".",
      ),
    ),
  );
  creation.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(create, message, async () => {
      const json = { collection, name: name.value, trigger: trigger.value, cooldown_s: Number(cooldown.value) };
      await requestJson("alerts/rules", { method: "POST", json });
      name.value = "";
      await load();
    });
  });
  element.addEventListener("toggle", () => {
    if (element.open) load();
  });

  async function load() {
    try {
      const { data } = await requestJson("alerts/rules", { query: { limit: 1000 } });
      for (const rule of data) names.set(rule.id, rule.name);
      show(data.filter((/** @type {Rule} */ rule) => rule.collection === collection));
      replaceContent(problem);
      onChanged();
    } catch (error) {
      replaceContent(problem, errorNotice(error, load));
    }
  }

  /** @param {Rule[]} data */
  function show(data) {
    summary.textContent = `Rules of ${collection} (${data.length})`;
    replaceContent(list, ...data.map(row));
  }

  /** @param {Rule} rule */
  function row(rule) {
    const drop = h("button", { type: "button", class: "danger", "aria-label": `Delete the rule ${rule.name}` }, "Delete");
    const failure = h("div");
    drop.addEventListener("click", async () => {
      const text = "The rule and all its alerts are deleted. This cannot be undone.";
      if (!(await confirmDialog({ title: `Delete ${rule.name}?`, text, action: "Delete" }))) return;
      await attempt(drop, failure, async () => {
        await requestJson(`alerts/rules/${encodeURIComponent(rule.id)}`, { method: "DELETE" });
        await load();
      });
    });
    return h(
      "li",
      { class: "rule" },
      h("div", { class: "row spread" }, h("strong", {}, rule.name), drop),
      h("span", { class: "hint" }, describe(rule)),
      failure,
    );
  }

  return {
    element,
    load,
    /** @param {string} id */
    nameOf: (id) => names.get(id) ?? `Rule ${id.slice(0, 8)}`,
    /**
     * Store the name that an event of the stream has.
     * @param {string} id
     * @param {string} title
     */
    setName: (id, title) => names.set(id, title),
    /** @param {string} next name of the collection */
    setCollection(next) {
      collection = next;
      load();
    },
  };
}

/** @param {Rule} rule */
function describe({ trigger, cameras, cooldown_s, where, schedule, targets }) {
  return [
    trigger === "match" ? "subjects" : "unknown people",
    cameras.length ? `at ${cameras.join(", ")}` : "at all cameras",
    where ? "with certain metadata" : "",
    schedule ? "by a schedule" : "",
    cooldown_s ? `pause of ${formatPause(cooldown_s)}` : "",
    targets.length ? plural(targets.length, "target") : "event stream only",
  ]
    .filter(Boolean)
    .join(" · ");
}

/** @param {number} seconds */
function formatPause(seconds) {
  if (seconds % 3600 === 0) return plural(seconds / 3600, "hour");
  if (seconds % 60 === 0) return plural(seconds / 60, "minute");
  return plural(seconds, "second");
}
