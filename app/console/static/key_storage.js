/** Stores the API key in the tab's session storage, which ends when the tab is closed. */

const NAME = "vestibule-key";

/** @returns {string} empty if there is none */
export function storedKey() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // storage is disabled
  }
}

/** @param {string} key empty to remove it */
export function storeKey(key) {
  if (key) sessionStorage.setItem(NAME, key);
  else sessionStorage.removeItem(NAME);
}
