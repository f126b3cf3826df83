/** Repeat a request while its results are visible. */

import { Problem, isAbort, isFinal } from "./api.js";

/**
 * Run `work` every `everyMs` milliseconds while `active` is set and the page is not in the background.
 *
 * After an error that repetition cannot resolve, such as a key without the scope, it pauses until `now` is called or
 * `active` is set again. `work` must stop its previous run if it is called again before that has ended.
 * @param {number} everyMs
 * @param {() => Promise<void>} work
 * @param {(error: unknown) => void} onError
 */
export function polling(everyMs, work, onError) {
  let active = false;
  let failure = "";
  /** @type {number | undefined} */
  let timer;

  function now() {
    clearTimeout(timer);
    if (active && !document.hidden) run();
  }

  async function run() {
    try {
      await work();
      failure = "";
    } catch (error) {
      if (isAbort(error)) return; // replaced by a later run
      // A repeated error is shown once, so that its notice keeps the focus and is announced once.
      const text = error instanceof Problem ? `${error.title} ${error.detail}` : String(error);
      if (text !== failure) onError(error);
      failure = text;
      if (isFinal(error)) return;
    }
    clearTimeout(timer);
    if (active && !document.hidden) timer = setTimeout(run, everyMs);
  }

  document.addEventListener("visibilitychange", now);
  return {
    now,
    get active() {
      return active;
    },
    set active(value) {
      active = value;
      now();
    },
  };
}
