/** The console's page: the URL's hash selects the visible tab; hidden tabs keep their content. */

import { announce, h } from "./dom.js";
import { initKeyButton } from "./key_dialog.js";
import { listenForPastedPictures } from "./image_picker.js";
import classify from "./tabs/classify.js";
import denoise from "./tabs/denoise.js";
import gallery from "./tabs/gallery.js";
import generate from "./tabs/generate.js";
import live from "./tabs/live.js";
import models from "./tabs/models.js";
import status from "./tabs/status.js";
import verify from "./tabs/verify.js";

/**
 * @typedef {{title: string, lead: string, element: HTMLElement, show?: (rest: string) => void, hide?: () => void}} Tab
 *   `rest` is the part of the hash after the tab's name: "doors" in `#gallery/doors`
 */

/** @type {Record<string, () => Tab>} */
const TABS = { classify, verify, gallery, live, generate, denoise, models, status };
const FIRST = "classify";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const links = [.../** @type {HTMLElement} */ (document.getElementById("tabs")).querySelectorAll("a")];
/** @type {Map<string, {tab: Tab, section: HTMLElement}>} */
const opened = new Map();
/** @type {string | undefined} */
let current;

/** @param {string} name */
function open(name) {
  const existing = opened.get(name);
  if (existing) return existing;
  const tab = TABS[name]();
  const id = `title-${name}`;
  const section = h(
    "section",
    { class: "tab", "aria-labelledby": id, hidden: true },
    h("header", { class: "lead" }, h("h1", { id, tabindex: "-1" }, tab.title), h("p", {}, tab.lead)),
    tab.element,
  );
  main.append(section);
  const entry = { tab, section };
  opened.set(name, entry);
  return entry;
}

/** Return the parts of the hash between its slashes. */
function hashParts() {
  try {
    return location.hash.slice(1).split("/").map(decodeURIComponent);
  } catch {
    return [FIRST]; // invalid percent-encoding
  }
}

function route() {
  const [requested, ...rest] = hashParts();
  const name = Object.hasOwn(TABS, requested) ? requested : FIRST;
  if (current && current !== name) {
    const previous = open(current);
    previous.section.hidden = true;
    previous.tab.hide?.();
  }
  const { tab, section } = open(name);
  const moved = current !== undefined && current !== name;
  current = name;
  section.hidden = false;
  for (const link of links) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${tab.title} · Vestibule`;
  tab.show?.(rest.join("/"));
  if (moved) focusTab(section, tab.title);
}

/**
 * After a link in the page, focus the new tab's title; after the tab bar, keep the focus there.
 * @param {HTMLElement} section
 * @param {string} title
 */
function focusTab(section, title) {
  scrollTo(0, 0);
  if (links.some((link) => link === document.activeElement)) announce(title);
  else section.querySelector("h1")?.focus();
}

/** @param {KeyboardEvent} event */
function moveFocus(event) {
  const at = links.findIndex((link) => link === document.activeElement);
  /** @type {Record<string, number>} */
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: links.length - 1 };
  if (at < 0 || !(event.key in steps)) return;
  event.preventDefault();
  links[(steps[event.key] + links.length) % links.length].focus();
}

document.getElementById("tabs")?.addEventListener("keydown", moveFocus);
document.getElementById("skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
initKeyButton();
listenForPastedPictures();
main.replaceChildren();
route();
