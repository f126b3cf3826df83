/** The calibrations on site of a collection: which one is in use, and the error rates before and after each. */

import { requestJson } from "../api.js";
import { attempt, badge, errorNotice, loading, terminalCommand } from "../controls.js";
import { announce, formatRate, formatTime, h, plural, replaceContent } from "../dom.js";

/**
 * @typedef {{requested: number, comparisons: number, before: number, before_low: number, before_high: number,
 *   after: number | null, after_low: number | null, after_high: number | null}} RateChange
 * @typedef {{field: string, value: string, people: number, before: number, after: number | null}} GroupErrors
 * @typedef {{people: number, photos: number, comparisons: number, mated: number, fmr: RateChange[],
 *   fpir: RateChange[], fnir: RateChange[], groups: GroupErrors[]}} Report
 * @typedef {{id: string, version: number, fingerprint: string, created_at: string, in_use: boolean,
 *   report: Report}} Calibration
 */

const PAGE = 100;

/**
 * @param {{name: string, path: string, fingerprint: string, onChanged: () => void}} options `path` is the collection's,
 *   in the API; `fingerprint`: a calibration of another pipeline cannot be used
 */
export function calibrations({ name, path, fingerprint, onChanged }) {
  const body = h("div", { class: "stack" }, loading("Loading calibrations …", 1));
  const terminal = terminalCommand(() => `vestibule gallery calibrate '${name}' --strangers photos/`);
  const element = h(
    "section",
    { class: "panel", "aria-label": "Calibration on site" },
    h("h2", {}, "Calibration on site"),
    h(
      "p",
      { class: "hint" },
      "Photos of people who are not enrolled, from the site's own cameras, fit the thresholds of this collection. The terminal command makes a new version.",
    ),
    body,
    terminal.element,
  );

  async function load() {
    try {
      /** @type {Calibration[]} */
      const all = [];
      /** @type {number | null} */
      let after = 0;
      while (after !== null) {
        const answer = await requestJson(`${path}/calibrations`, { query: { limit: PAGE, after } });
        all.push(...answer.data);
        after = answer.next;
      }
      const own = row("The embedder's own thresholds", null, !all.some((calibration) => calibration.in_use));
      replaceContent(body, h("ul", { class: "receipts" }, ...all.reverse().map(version), own));
    } catch (error) {
      replaceContent(body, errorNotice(error, load));
    }
  }

  /** @param {Calibration} calibration */
  function version({ id, version, created_at, in_use, report, ...calibration }) {
    const facts = [
      `fitted ${formatTime(created_at)}`,
      `${plural(report.photos, "photo")} of ${plural(report.people, "person", "people")} who are not enrolled`,
      plural(report.comparisons, "comparison"),
      report.mated ? plural(report.mated, "comparison of enrolled people", "comparisons of enrolled people") : "",
    ];
    const usable = calibration.fingerprint === fingerprint;
    return row(
      `Version ${version}`,
      id,
      in_use,
      usable,
      h("span", { class: "hint" }, facts.filter(Boolean).join(" · ")),
      usable ? null : h("span", { class: "hint" }, "Of another embedder: it cannot be used."),
      h("details", { class: "report" }, h("summary", {}, `Error rates of version ${version}`), tables(report)),
    );
  }

  /**
   * @param {string} title
   * @param {string | null} id null: the embedder's own thresholds
   * @param {boolean} inUse
   * @param {boolean} usable
   * @param {...import("../dom.js").Child} children
   */
  function row(title, id, inUse, usable = true, ...children) {
    const message = h("div");
    const use = h("button", { type: "button", "aria-label": `Use: ${title}` }, "Use");
    use.addEventListener("click", () =>
      attempt(use, message, async () => {
        await requestJson(`${path}/calibration`, { method: "PUT", json: { id } });
        announce(`${title}: in use`);
        await load();
        onChanged();
      }),
    );
    const state = inUse ? badge("✓ in use", "good") : usable ? use : null;
    return h("li", { class: "rule" }, h("div", { class: "row spread" }, h("strong", {}, title), state), ...children, message);
  }

  load();
  return { element };
}

/** @param {Report} report */
function tables({ fmr, fpir, fnir, groups }) {
  return h(
    "div",
    { class: "stack" },
    h(
      "p",
      { class: "hint" },
      "With intervals of 95 %. The rates after are measured on people to whom the thresholds were not fitted; “–” where there are too few.",
    ),
    changes("Different people who match (FMR)", "At most", fmr),
    changes("Strangers taken for an enrolled person (FPIR)", "At most", fpir),
    fnir.length ? changes("Enrolled people who are not found (FNIR)", "FPIR at most", fnir) : null,
    groups.length ? groupErrors(groups) : null,
  );
}

/**
 * @param {string} title
 * @param {string} requested the header of the first column
 * @param {RateChange[]} rows
 */
function changes(title, requested, rows) {
  return table(
    title,
    [requested, "Before", "After"],
    rows.map((row) => [
      formatRate(row.requested),
      interval(row.before, row.before_low, row.before_high),
      interval(row.after, row.after_low, row.after_high),
    ]),
  );
}

/** @param {GroupErrors[]} groups */
function groupErrors(groups) {
  return table(
    "Different people who match, at most 1 in 100 requested, by metadata",
    ["Strangers", "People", "Before", "After"],
    groups.map(({ field, value, people, before, after }) => [
      `${field}: ${value}`,
      people,
      decimal(before),
      after === null ? "–" : decimal(after),
    ]),
  );
}

/**
 * @param {string} title
 * @param {string[]} headers
 * @param {import("../dom.js").Child[][]} rows
 */
function table(title, headers, rows) {
  return h(
    "table",
    {},
    h("caption", {}, title),
    h("thead", {}, h("tr", {}, ...headers.map((header) => h("th", { scope: "col" }, header)))),
    h(
      "tbody",
      {},
      ...rows.map(([first, ...rest]) =>
        h("tr", {}, h("th", { scope: "row" }, first), ...rest.map((cell) => h("td", {}, cell))),
      ),
    ),
  );
}

/**
 * A rate with its interval: "0.0304 (0.02 to 0.04)".
 * @param {number | null} rate
 * @param {number | null} low
 * @param {number | null} high
 */
function interval(rate, low, high) {
  if (rate === null) return "–";
  const limits = low === null || high === null ? null : h("span", { class: "hint" }, ` (${decimal(low)} to ${decimal(high)})`);
  return h("span", {}, decimal(rate), limits);
}

/** @param {number} rate */
function decimal(rate) {
  return rate.toLocaleString("en", { maximumSignificantDigits: 3 });
}
