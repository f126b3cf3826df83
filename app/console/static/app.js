/** The page: one tab at a time, by the address's hash; a tab keeps what is in it while others are looked at. */

import { announce, h } from "./dom.js";
import { listenForKey } from "./key.js";
import { listenForPictures } from "./pictures.js";
import classify from "./tabs/classify.js";
import denoise from "./tabs/denoise.js";
import gallery from "./tabs/gallery.js";
import generate from "./tabs/generate.js";
import models from "./tabs/models.js";
import status from "./tabs/status.js";
import verify from "./tabs/verify.js";

/**
 * @typedef {{title: string, lead: string, element: HTMLElement, show?: (rest: string) => void, hide?: () => void}} Tab
 *   `rest` is what follows the tab's name in the hash: `#gallery/doors`
 */

/** @type {Record<string, () => Tab>} */
const TABS = { classify, verify, gallery, generate, denoise, models, status };
const FIRST = "classify";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const links = [.../** @type {HTMLElement} */ (document.getElementById("tabs")).querySelectorAll("a")];
/** @type {Map<string, {tab: Tab, section: HTMLElement}>} */
const opened = new Map();
/** @type {string | undefined} */
let current;

/** @param {string} name */
function open(name) {
  const known = opened.get(name);
  if (known) return known;
  const tab = TABS[name]();
  const id = `title-${name}`;
  const section = h(
    "section",
    { class: "tab", "aria-labelledby": id, hidden: true },
    h("header", { class: "lead" }, h("h1", { id, tabindex: "-1" }, tab.title), h("p", {}, tab.lead)),
    tab.element,
  );
  main.append(section);
  const made = { tab, section };
  opened.set(name, made);
  return made;
}

/** What the hash says, between its slashes. */
function place() {
  try {
    return location.hash.slice(1).split("/").map(decodeURIComponent);
  } catch {
    return [FIRST]; // no such encoding
  }
}

function route() {
  const [asked, ...rest] = place();
  const name = Object.hasOwn(TABS, asked) ? asked : FIRST;
  if (current && current !== name) {
    const left = open(current);
    left.section.hidden = true;
    left.tab.hide?.();
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
  if (moved) arrive(section, tab.title);
}

/**
 * Whoever came by the row of tabs goes on from there; whoever followed a link in the page begins at the new title.
 * @param {HTMLElement} section
 * @param {string} title
 */
function arrive(section, title) {
  scrollTo(0, 0);
  if (links.some((link) => link === document.activeElement)) announce(title);
  else section.querySelector("h1")?.focus();
}

/** @param {KeyboardEvent} event */
function walk(event) {
  const at = links.findIndex((link) => link === document.activeElement);
  /** @type {Record<string, number>} */
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: links.length - 1 };
  if (at < 0 || !(event.key in steps)) return;
  event.preventDefault();
  links[(steps[event.key] + links.length) % links.length].focus();
}

document.getElementById("tabs")?.addEventListener("keydown", walk);
document.getElementById("skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
listenForKey();
listenForPictures();
main.replaceChildren();
route();
