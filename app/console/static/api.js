/** Requests to the service's API. */

import { storedKey } from "./key_storage.js";

/**
 * @typedef {{type?: string, title: string, status?: number, detail?: string,
 *   errors?: {parameter: string, detail: string}[]}} ProblemDetails RFC 9457
 * @typedef {Record<string, string | number | boolean | null | undefined>} Query null and "" are left out
 */

/** An error of the API, with the title and detail of its problem document. */
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
    const wait = retryAfter ? `Try again in ${retryAfter} s.` : "";
    this.detail = [details.detail, ...fields, wait].filter(Boolean).join(" · ");
  }
}

const UNREACHABLE = {
  title: "The service does not respond",
  detail: "It may have stopped, or the network is down. Your input is kept; try again.",
};

const NO_KEY = {
  title: "This service requires an API key",
  status: 401,
  detail: "Enter a key with the button “Key” at the top. The service's operator creates keys.",
};

const WRONG_KEY = {
  title: "The API key is not accepted",
  status: 401,
  detail: "It is unknown, expired or revoked. Enter another key with the button “Key” at the top.",
};

/**
 * Return the URL of a path of the API, relative to this page.
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
 * Send a request and return its response.
 * @param {string} path
 * @param {{method?: string, query?: Query, body?: FormData, json?: unknown, headers?: Record<string, string>,
 *   signal?: AbortSignal}} [options]
 * @returns {Promise<Response>} with a status of 2xx
 * @throws {Problem} also if the service does not respond; an aborted request throws as `fetch` does
 */
export async function call(path, { method = "GET", query = {}, body, json, headers = {}, signal } = {}) {
  /** @type {RequestInit & {headers: Record<string, string>}} */
  const init = { method, signal, headers: { ...headers } };
  const key = storedKey();
  if (key) init.headers.authorization = `Bearer ${key}`;
  if (body) init.body = body;
  if (json !== undefined) {
    init.body = JSON.stringify(json);
    init.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(address(path, query), init);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem(UNREACHABLE);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    dispatchEvent(new Event("keyneeded"));
    throw new Problem(key ? WRONG_KEY : NO_KEY);
  }
  throw new Problem(await problemOf(response), response.headers.get("retry-after"));
}

/**
 * Send a request and return the JSON of its response.
 * @param {string} path
 * @param {Parameters<typeof call>[1]} [options]
 * @returns {Promise<any>}
 */
export async function requestJson(path, options) {
  return (await call(path, options)).json();
}

/**
 * Let the browser save a response as a file. A plain link would be requested without the key.
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
 * Return multipart form data with a part for each image.
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
 * Return the durations of the `Server-Timing` header in ms, by name.
 * @param {Response} response
 * @returns {Record<string, number>}
 */
export function timings(response) {
  const header = response.headers.get("server-timing") ?? "";
  return Object.fromEntries([...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
}

/**
 * Return whether a request was aborted by this page.
 * @param {unknown} error
 */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/**
 * Return whether repeating a request cannot succeed before a person has changed something, such as the key.
 * @param {unknown} error
 */
export function isFinal(error) {
  if (!(error instanceof Problem)) return true; // an error in this page
  return error.status >= 400 && error.status < 500 && error.status !== 429;
}

/** Aborts the previous request when the next one starts. */
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
    // A proxy answered with something that is not a problem document.
  }
  return { title: `The response was ${response.status} ${response.statusText}`.trim(), status: response.status };
}
