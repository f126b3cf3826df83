/** One picture from the camera. What it sees stays in the page until the picture is sent. */

import { h, put } from "./dom.js";

/** Whether this page may ask for a camera: only on this machine itself or over https. */
export function hasCamera() {
  return Boolean(navigator.mediaDevices?.getUserMedia);
}

/**
 * @returns {Promise<File | null>} null where none was taken
 */
export async function photograph() {
  const video = h("video", { autoplay: true, playsinline: true });
  video.muted = true;
  const told = h("p", { class: "hint", role: "status" }, "The browser asks whether this page may use the camera.");
  const take = h("button", { type: "button", class: "primary", disabled: true }, "Take the picture");
  const close = h("button", { type: "button" }, "Cancel");
  const dialog = h("dialog", { class: "camera", "aria-label": "Camera" });
  put(dialog, h("div", { class: "viewfinder" }, video), told, h("div", { class: "row end" }, close, take));
  document.body.append(dialog);
  dialog.showModal();
  close.addEventListener("click", () => dialog.close());
  const ended = new Promise((resolve) => dialog.addEventListener("close", () => resolve(null)));
  /** @type {MediaStream | undefined} */
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 1280 } } });
    if (!dialog.open) return null;
    video.srcObject = stream;
    await video.play();
    told.textContent = "What the camera sees stays in this page until you use the picture.";
    take.disabled = false;
    take.focus();
    const taken = new Promise((resolve) => take.addEventListener("click", () => resolve(still(video))));
    return await Promise.race([taken, ended]);
  } catch (error) {
    const denied = error instanceof DOMException && error.name === "NotAllowedError";
    told.textContent = denied
      ? "The browser does not let this page use the camera. Its address bar has the setting."
      : "There is no camera that this page could use.";
    await ended;
    return null;
  } finally {
    for (const track of stream?.getTracks() ?? []) track.stop();
    dialog.remove();
  }
}

/**
 * @param {HTMLVideoElement} video
 * @returns {Promise<File | null>}
 */
function still(video) {
  const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d")?.drawImage(video, 0, 0);
  return new Promise((resolve) => {
    canvas.toBlob((blob) => resolve(blob && new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.92);
  });
}
