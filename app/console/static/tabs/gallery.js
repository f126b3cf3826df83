/** Create, list and erase collections. `#gallery` is the list, `#gallery/doors` the collection “doors”. */

import { requestJson } from "../api.js";
import { models } from "../model_cards.js";
import { badge, checkbox, terminalCommand, confirmDialog, whileBusy, emptyState, field, idInput, errorNotice, loading } from "../controls.js";
import { h, plural, formatTime, replaceContent } from "../dom.js";
import { calibrations } from "../gallery/calibrations.js";
import { duplicates } from "../gallery/duplicates.js";
import { enrol } from "../gallery/enrol.js";
import { erasures } from "../gallery/erasures.js";
import { merges } from "../gallery/merges.js";
import { search } from "../gallery/search.js";
import { subjects } from "../gallery/subjects.js";
import { unknownPeople } from "../gallery/unknown_people.js";

/**
 * @typedef {{name: string, embedder: string, fingerprint: string, encrypted: boolean, created_at: string}} Collection
 * @typedef {Collection & {subjects: number, faces: number, exact: boolean, keep_crops: boolean, encrypted: boolean, allow_int8: boolean}} Detail
 */

/** @param {string} name */
const pathOf = (name) => `collections/${encodeURIComponent(name)}`;

/** @param {string} name */
const hashOf = (name) => `#gallery/${encodeURIComponent(name)}`;

/** @returns {import("../app.js").Tab} */
export default function gallery() {
  const receipts = erasures();
  const view = h("div");
  const element = h("div", { class: "stack" }, view, receipts.element);
  /** @type {string | undefined} */
  let shown;

  return {
    title: "Gallery",
    lead: "Enrol people or objects, and identify them in images.",
    element,
    show(name) {
      // An open collection keeps its content; the list is loaded again.
      if (name && name === shown) return;
      shown = name;
      replaceContent(view, name ? collection(name, receipts.add) : overview());
    },
  };
}

function overview() {
  const list = h("div", { class: "stage" }, loading("Loading collections …"));
  const name = idInput();
  const embedder = h("select");
  const crops = checkbox("Store aligned faces, so that a new model can re-embed them", false);
  const encrypted = checkbox("Encrypt with the operator's key (cannot be changed later)", false);
  const int8 = checkbox("Allow 8-bit vectors: faster on a CPU, less exact (cannot be changed later)", false);
  const create = h("button", { type: "submit", class: "primary" }, "Create collection");
  const message = h("div");
  const creation = h(
    "form",
    { class: "panel", "aria-label": "New collection" },
    h("h2", {}, "New collection"),
    field("Name", name, "Letters, digits and . @ : + - _"),
    field("Embedder", embedder),
    crops.element,
    encrypted.element,
    int8.element,
    create,
    message,
  );
  creation.addEventListener("submit", (event) => {
    event.preventDefault();
    whileBusy(create, async () => {
      try {
        await requestJson(pathOf(name.value), {
          method: "PUT",
          json: {
            embedder: embedder.value || null,
            keep_crops: crops.box.checked,
            encrypted: encrypted.box.checked,
            allow_int8: int8.box.checked,
          },
        });
        location.hash = hashOf(name.value);
      } catch (error) {
        replaceContent(message, errorNotice(error));
      }
    });
  });
  embedder.addEventListener("change", () => {
    for (const { box } of [crops, int8]) {
      box.disabled = embedder.selectedOptions[0]?.dataset.task !== "embed";
      if (box.disabled) box.checked = false;
    }
  });
  const terminal = terminalCommand(
    () =>
      `curl -X PUT --json '{"embedder": "${embedder.value}"}' '${location.origin}/${pathOf(name.value || "doors")}'`,
  );
  const element = h("div", { class: "split" }, h("div", { class: "side" }, creation, terminal.element), list);
  loadEmbedders(embedder);
  load(list);
  return element;
}

/** @param {HTMLSelectElement} embedder */
async function loadEmbedders(embedder) {
  const available = [...(await models("embed")), ...(await models("classify"))];
  replaceContent(
    embedder,
    ...available.map((model) =>
      h(
        "option",
        { value: model.name, "data-task": model.task },
        `${model.task === "embed" ? "Faces" : "Whole images"}: ${model.name}`,
      ),
    ),
  );
}

/** @param {HTMLElement} list */
async function load(list) {
  const rows = h("ul", { class: "collections" });
  const more = h("button", { type: "button", hidden: true }, "More");
  /** @param {string} after */
  async function page(after) {
    const answer = await requestJson("collections", { query: { limit: 50, after } });
    rows.append(...answer.data.map(listed));
    more.hidden = answer.next === null;
    more.onclick = () => page(answer.next);
    return rows.childElementCount;
  }
  try {
    if (await page("")) replaceContent(list, rows, more);
    else replaceContent(list, noCollections());
  } catch (error) {
    replaceContent(
      list,
      errorNotice(error, () => load(list)),
    );
  }
}

function noCollections() {
  return emptyState(
    "No collections yet",
    h(
      "p",
      {},
      "A collection stores faces, or whole images, under ids you choose. To try it, create one named “doors”, enrol one of the two example photos, and search with the other.",
    ),
    h(
      "p",
      {},
      "Enrol people only with their consent. Erased subjects are excluded from searches at once and removed from the disk soon after.",
    ),
  );
}

/** @param {Collection} collection */
function listed({ name, embedder, created_at }) {
  return h(
    "li",
    {},
    h(
      "a",
      { class: "panel collection", href: hashOf(name) },
      h("strong", {}, name),
      h("span", { class: "hint" }, `embedder ${embedder} · created ${formatTime(created_at)}`),
    ),
  );
}

/**
 * The view of one collection.
 * @param {string} name
 * @param {(what: string, receipt: any) => void} onErased
 */
function collection(name, onErased) {
  const path = pathOf(name);
  const head = h("div", { class: "stack" }, loading("Opening …", 1));
  const body = h("div");
  const back = h("a", { href: "#gallery" }, "‹ All collections");
  /** @type {ReturnType<typeof search> | undefined} */
  let searching;

  /** @param {Detail} detail */
  function title(detail) {
    const drop = h("button", { type: "button", class: "danger" }, "Erase collection");
    drop.addEventListener("click", async () => {
      const text = `${plural(detail.subjects, "subject")} with ${plural(detail.faces, "face")} will be erased: from searches at once, then from every file. This cannot be undone.`;
      if (!(await confirmDialog({ title: `Erase ${name}?`, text, action: "Erase" }))) return;
      try {
        onErased(name, await requestJson(path, { method: "DELETE" }));
        location.hash = "#gallery";
      } catch (error) {
        head.append(errorNotice(error));
      }
    });
    replaceContent(
      head,
      h(
        "div",
        { class: "row spread" },
        h(
          "div",
          { class: "row" },
          h("h2", {}, name),
          badge(plural(detail.subjects, "subject")),
          badge(plural(detail.faces, "face")),
          badge(detail.embedder),
          detail.encrypted && badge("encrypted"),
          detail.allow_int8 && badge("8-bit vectors allowed"),
        ),
        drop,
      ),
    );
  }

  async function open() {
    try {
      const detail = /** @type {Detail} */ (await requestJson(path));
      title(detail);
      if (searching) return;
      const whole = (await models("embed")).every((model) => model.name !== detail.embedder);
      searching = search({ name, whole });
      replaceContent(body, parts(detail, whole, searching.element));
    } catch (error) {
      replaceContent(head, errorNotice(error, open));
    }
  }

  /**
   * @param {Detail} detail
   * @param {boolean} whole whether the collection holds whole images, not faces
   * @param {HTMLElement} searchPanel
   */
  function parts({ embedder, fingerprint, keep_crops: keepsCrops }, whole, searchPanel) {
    const onEnrolled = () => {
      refresh();
      subjectList.load();
    };
    const onCurated = () => {
      onEnrolled();
      mergeList.load();
    };
    const erased = (/** @type {string} */ what, /** @type {any} */ receipt) => {
      onErased(what, receipt);
      refresh();
    };
    const subjectList = subjects({ path, keepsCrops, onErased: erased, onCurated });
    const mergeList = merges({ path, onCurated });
    // Whole images have no calibrated thresholds, which these parts need.
    const forFaces = whole
      ? []
      : [
          duplicates({ path, keepsCrops, onCurated }),
          unknownPeople({ name, path, embedder, onEnrolled }),
          calibrations({ name, path, fingerprint, onChanged: () => searching?.run() }),
        ];
    return h(
      "div",
      { class: "split" },
      h("div", { class: "side" }, enrol({ path, whole, onEnrolled }).element),
      h("div", { class: "stage" }, searchPanel, ...[subjectList, mergeList, ...forFaces].map((part) => part.element)),
    );
  }

  /** Update the counts and the last search's results after a change. */
  function refresh() {
    open();
    searching?.run();
  }

  open();
  return h("div", { class: "stack" }, h("p", {}, back), head, body);
}
