/** Server-sent events, read with `fetch`: `EventSource` cannot send the API key. */

import { Problem, call, isFinal } from "./api.js";

/**
 * @typedef {"connecting" | "open" | "waiting" | "refused"} StreamState `waiting`: until the next attempt to connect
 * @typedef {{onEvent: (type: string, data: string) => void, onState: (state: StreamState, error?: unknown) => void}}
 *   Listeners
 */

const SILENCE_MS = 45_000; // the service sends at least a comment every 15 s
const FIRST_WAIT_MS = 2000;
const LONGEST_WAIT_MS = 30_000;

/**
 * A stream of events. When it ends, it connects again and continues behind the last event that it received.
 * @param {string} path
 * @param {Listeners} listeners
 */
export function eventStream(path, listeners) {
  let lastId = "";
  /** @type {AbortController | undefined} */
  let controller;

  function close() {
    controller?.abort();
    controller = undefined;
  }

  /** Connect, and receive the events from now on. */
  function open() {
    close();
    lastId = "";
    controller = new AbortController();
    follow(controller.signal);
  }

  /** @param {AbortSignal} signal */
  async function follow(signal) {
    let wait = FIRST_WAIT_MS;
    while (!signal.aborted) {
      /** @type {unknown} */
      let failure;
      listeners.onState("connecting");
      try {
        await read(signal, () => {
          wait = FIRST_WAIT_MS;
          listeners.onState("open");
        });
      } catch (error) {
        failure = error;
      }
      if (signal.aborted) return;
      if (failure instanceof Problem && isFinal(failure)) return listeners.onState("refused", failure);
      listeners.onState("waiting", failure);
      await delay(wait, signal);
      wait = Math.min(2 * wait, LONGEST_WAIT_MS);
    }
  }

  /**
   * Read one response to its end.
   * @param {AbortSignal} signal
   * @param {() => void} onOpen
   */
  async function read(signal, onOpen) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      const headers = /** @type {Record<string, string>} */ (lastId ? { "last-event-id": lastId } : {});
      const response = await call(path, { headers, signal: AbortSignal.any([signal, silence.signal]) });
      const parser = eventParser();
      const chunks = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      const decoder = new TextDecoder();
      onOpen();
      for (;;) {
        const { done, value } = await chunks.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        for (const event of parser.push(decoder.decode(value, { stream: true }))) {
          lastId = event.id;
          if (event.data !== null) listeners.onEvent(event.type, event.data);
        }
      }
    } finally {
      clearTimeout(timer);
    }
  }

  return { open, close };
}

/**
 * A parser of the format of server-sent events. `data` is null for an event that has only an id.
 */
export function eventParser() {
  let rest = "";
  let id = "";
  let type = "";
  /** @type {string[]} */
  let data = [];

  /**
   * Return the events that end in this piece of the stream.
   * @param {string} text
   * @returns {{id: string, type: string, data: string | null}[]}
   */
  function push(text) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    const events = [];
    for (const line of lines) {
      const [, name, value] = line.match(/^([^:\r]*)(?:: ?([^\r]*))?/) ?? [];
      if (name === "id") id = value ?? "";
      else if (name === "event") type = value ?? "";
      else if (name === "data") data.push(value ?? "");
      if (line.trimEnd()) continue;
      if (id || data.length) events.push({ id, type: type || "message", data: data.length ? data.join("\n") : null });
      type = "";
      data = [];
    }
    return events;
  }

  return { push };
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>} resolved after the time, or when aborted
 */
function delay(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}
