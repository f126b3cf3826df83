/** Take a photo with the camera. The video stays in the page; only the photo is sent. */

import { h, replaceContent } from "./dom.js";

/** Return whether browsers allow this page to use a camera: only on localhost or over https. */
export function cameraAvailable() {
  return Boolean(navigator.mediaDevices?.getUserMedia);
}

/**
 * Open the camera dialog and return the photo.
 * @returns {Promise<File | null>} null if none was taken
 */
export async function takePhoto() {
  const video = h("video", { autoplay: true, playsinline: true });
  video.muted = true;
  const message = h("p", { class: "hint", role: "status" }, "Allow this page to use the camera in the browser's prompt.");
  const take = h("button", { type: "button", class: "primary", disabled: true }, "Take photo");
  const close = h("button", { type: "button" }, "Cancel");
  const dialog = h("dialog", { class: "camera", "aria-label": "Camera" });
  replaceContent(dialog, h("div", { class: "viewfinder" }, video), message, h("div", { class: "row end" }, close, take));
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
    message.textContent = "The video stays in this page; only the photo you take is sent.";
    take.disabled = false;
    take.focus();
    const taken = new Promise((resolve) => take.addEventListener("click", () => resolve(captureFrame(video))));
    return await Promise.race([taken, ended]);
  } catch (error) {
    const denied = error instanceof DOMException && error.name === "NotAllowedError";
    message.textContent = denied
      ? "The browser blocks the camera for this page; its address bar has the setting."
      : "No camera is available.";
    await ended;
    return null;
  } finally {
    for (const track of stream?.getTracks() ?? []) track.stop();
    dialog.remove();
  }
}

/**
 * Return the current frame as a JPEG.
 * @param {HTMLVideoElement} video
 * @returns {Promise<File | null>}
 */
function captureFrame(video) {
  const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d")?.drawImage(video, 0, 0);
  return new Promise((resolve) => {
    canvas.toBlob((blob) => resolve(blob && new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.92);
  });
}
