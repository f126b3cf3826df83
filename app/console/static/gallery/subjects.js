/** The subjects of a collection, by page, with their faces; and how to erase, merge and split them. */

import { requestJson } from "../api.js";
import { confirmDialog, emptyState, errorNotice, loading } from "../controls.js";
import { count, h, plural, formatTime, replaceContent } from "../dom.js";
import { subjectFaces } from "./faces.js";

/**
 * @typedef {{id: string, name: string | null, faces: number, created_at: string}} Subject
 */

const PAGE = 10;

/** @param {import("./faces.js").Options} options */
export function subjects(options) {
  const { path, onErased } = options;
  /** The cursor of each page up to the current one. @type {string[]} */
  let starts = [""];
  const body = h("div", { class: "stack" }, loading("Loading subjects …"));
  const place = h("span", { class: "hint" });
  const back = h("button", { type: "button", onclick: () => turn(-1) }, "‹ Previous");
  const forward = h("button", { type: "button", onclick: () => turn(1) }, "Next ›");
  const pages = h("nav", { class: "row end", "aria-label": "Pages of subjects", hidden: true }, place, back, forward);
  const element = h("section", { class: "panel", "aria-label": "Subjects" }, h("h2", {}, "Subjects"), body, pages);
  /** @type {string | null} */
  let next = null;

  /** @param {number} step */
  function turn(step) {
    if (step > 0 && next !== null) starts.push(next);
    if (step < 0) starts.pop();
    return load();
  }

  async function load() {
    try {
      let answer = await requestJson(`${path}/subjects`, { query: { limit: PAGE, after: starts.at(-1) } });
      if (!answer.data.length && starts.length > 1) {
        starts.pop(); // the last subject of this page was erased
        answer = await requestJson(`${path}/subjects`, { query: { limit: PAGE, after: starts.at(-1) } });
      }
      next = answer.next;
      show(answer.data);
    } catch (error) {
      replaceContent(body, errorNotice(error, load));
    }
  }

  /** @param {Subject[]} page */
  function show(page) {
    pages.hidden = next === null && starts.length === 1;
    back.disabled = starts.length === 1;
    forward.disabled = next === null;
    const first = (starts.length - 1) * PAGE + 1;
    place.textContent = `${count(first)} to ${count(first + page.length - 1)}`;
    if (!page.length) {
      replaceContent(
        body,
        emptyState("No subjects yet", h("p", {}, "Enrol a subject above: choose an id, and one or more photos.")),
      );
      return;
    }
    replaceContent(body, h("ul", { class: "people" }, ...page.map(row)));
  }

  /** @param {Subject} subject */
  function row(subject) {
    const label = subject.name ?? subject.id;
    const faces = subjectFaces(subject, {
      ...options,
      onErased(what, receipt) {
        onErased(what, receipt);
        load();
      },
    });
    const open = h("button", { type: "button", class: "quiet", "aria-expanded": "false" }, plural(subject.faces, "face"));
    open.addEventListener("click", () => {
      const { element: place } = faces;
      place.hidden = !place.hidden;
      open.setAttribute("aria-expanded", String(!place.hidden));
      if (!place.hidden) faces.load();
    });
    const erase = h("button", { type: "button", class: "danger", "aria-label": `Erase ${label}` }, "Erase");
    erase.addEventListener("click", async () => {
      const text = `${plural(subject.faces, "face")} and all other data of ${label} will be erased: from searches at once, then from every file. This cannot be undone.`;
      if (!(await confirmDialog({ title: `Erase ${label}?`, text, action: "Erase" }))) return;
      try {
        onErased(label, await requestJson(`${path}/subjects/${encodeURIComponent(subject.id)}`, { method: "DELETE" }));
        await load();
      } catch (error) {
        body.prepend(errorNotice(error));
      }
    });
    return h(
      "li",
      { class: "person" },
      h("div", { class: "who" }, h("strong", {}, label), subject.name ? h("code", {}, subject.id) : null),
      h("span", { class: "hint since" }, formatTime(subject.created_at)),
      open,
      erase,
      faces.element,
    );
  }

  load();
  return { element, load };
}
