/** The one way from this page to the service. */

import { held } from "./keyring.js";

/**
 * @typedef {{type?: string, title: string, status?: number, detail?: string,
 *   errors?: {parameter: string, detail: string}[]}} ProblemDetails RFC 9457
 * @typedef {Record<string, string | number | boolean | null | undefined>} Query null and "" are left out
 */

/** What the service answered in place of what was asked, in its own words. */
export class Problem extends Error {
  /**
   * @param {ProblemDetails} details
   * @param {string | null} [retryAfter] seconds
   */
  constructor(details, retryAfter = null) {
    super(details.title);
    this.title = details.title;
    this.status = details.status ?? 0;
    const fields = (details.errors ?? []).map((field) => `${field.parameter}: ${field.detail}`);
    const wait = retryAfter ? `It asks to wait ${retryAfter} s.` : "";
    this.detail = [details.detail, ...fields, wait].filter(Boolean).join(" · ");
  }
}

const SILENT = {
  title: "The service does not answer",
  detail: "It may have stopped, or the network is down. What you entered here is kept; try again.",
};

const NO_KEY = {
  title: "This service asks for an API key",
  status: 401,
  detail: "Enter one with the button “Key” at the top. Whoever runs the service makes them.",
};

const WRONG_KEY = {
  title: "The API key is not accepted",
  status: 401,
  detail: "It is not known here, or holds no longer. Enter another one with the button “Key” at the top.",
};

/**
 * A path of the API as an address, beside wherever this page lies.
 * @param {string} path
 * @param {Query} [query]
 */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, String(value));
  }
  return url.href;
}

/**
 * Ask the service.
 * @param {string} path
 * @param {{method?: string, query?: Query, body?: FormData, json?: unknown, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>} with a status of 2xx
 * @throws {Problem} also where nothing answers; an aborted call throws as `fetch` does
 */
export async function call(path, { method = "GET", query = {}, body, json, signal } = {}) {
  /** @type {RequestInit & {headers: Record<string, string>}} */
  const asked = { method, signal, headers: {} };
  const key = held();
  if (key) asked.headers.authorization = `Bearer ${key}`;
  if (body) asked.body = body;
  if (json !== undefined) {
    asked.body = JSON.stringify(json);
    asked.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(address(path, query), asked);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem(SILENT);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    dispatchEvent(new Event("keyneeded"));
    throw new Problem(key ? WRONG_KEY : NO_KEY);
  }
  throw new Problem(await problemOf(response), response.headers.get("retry-after"));
}

/**
 * The same, for an answer in JSON.
 * @param {string} path
 * @param {Parameters<typeof call>[1]} [options]
 * @returns {Promise<any>}
 */
export async function ask(path, options) {
  return (await call(path, options)).json();
}

/**
 * Let the browser save an answer as a file: a link alone would be followed without the key.
 * @param {string} path
 * @param {Query} query
 * @param {string} name
 */
export async function save(path, query, name) {
  const url = URL.createObjectURL(await (await call(path, { query })).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * Pictures as the API takes them: one part each.
 * @param {Record<string, Blob | Blob[]>} parts
 */
export function form(parts) {
  const data = new FormData();
  for (const [name, blobs] of Object.entries(parts)) {
    for (const blob of [blobs].flat()) data.append(name, blob);
  }
  return data;
}

/**
 * What `Server-Timing` says, in ms.
 * @param {Response} response
 * @returns {Record<string, number>}
 */
export function timings(response) {
  const header = response.headers.get("server-timing") ?? "";
  return Object.fromEntries([...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
}

/**
 * Whether a call was given up by the page itself.
 * @param {unknown} error
 */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Of calls that overtake each other only the last one counts: each `next` aborts what went before. */
export class Latest {
  /** @type {AbortController | undefined} */
  #controller;

  /** @returns {AbortSignal} */
  next() {
    this.stop();
    this.#controller = new AbortController();
    return this.#controller.signal;
  }

  stop() {
    this.#controller?.abort();
  }
}

/**
 * @param {Response} response
 * @returns {Promise<ProblemDetails>}
 */
async function problemOf(response) {
  try {
    const details = await response.json();
    if (typeof details.title === "string") return details;
  } catch {
    // Something between this page and the service answered in its own way.
  }
  return { title: `The answer was ${response.status} ${response.statusText}`.trim(), status: response.status };
}
