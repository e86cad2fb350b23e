// A photo file to upright sRGB pixels, by the browser's own decoder and colour management.
//
// In: a blob. Out: {pixels, width, height}, three bytes a pixel, or a PhotoFault.
// Why: large JPEG photos are learnt at a half, a quarter or an eighth of their size, each pixel the mean of a block of
// the file's grid. Browsers decode whole photos only: the means are taken here, in strips, so that no second copy of a
// large photo is held.

import { decodeReduced } from "./jpeg.js";
import { PhotoFault, checkSize, readPhotoFile } from "./photo_file.js";

const STRIP_ROWS = 512; // a multiple of 8, so that no block is divided

export const chooseDivisor = (width, height, atLeast) => {
  const nTimes = atLeast ? Math.floor(Math.min(width, height) / atLeast) : 1;
  return [8, 4, 2].find((n) => nTimes >= n) ?? 1;
};

// Means of blocks: sums of a strip of RGBA rows are added to `sums`, three to a pixel, and their number to `counts`.
function addStrip(rgba, width, rows, top, plan) {
  for (let y = 0; y < rows; y += 1) {
    const row = Math.floor((top + y) / plan.divisor) * plan.width;
    for (let x = 0; x < width; x += 1) {
      const to = row + Math.floor(x / plan.divisor);
      const from = (y * width + x) * 4;
      plan.sums[to * 3] += rgba[from];
      plan.sums[to * 3 + 1] += rgba[from + 1];
      plan.sums[to * 3 + 2] += rgba[from + 2];
      plan.counts[to] += 1;
    }
  }
}

function copyStrip(rgba, pixels, start) {
  let at = start;
  for (let from = 0; from < rgba.length; from += 4) {
    pixels[at] = rgba[from];
    pixels[at + 1] = rgba[from + 1];
    pixels[at + 2] = rgba[from + 2];
    at += 3;
  }
}

// Pixels of something that can be drawn, at a fraction of its size.
export function readPixels(image, divisor = 1) {
  const { width, height } = image;
  const across = Math.ceil(width / divisor);
  const down = Math.ceil(height / divisor);
  const pixels = new Uint8Array(across * down * 3);
  const plan = divisor > 1 ? { divisor, width: across, sums: new Uint32Array(pixels.length), counts: new Uint32Array(across * down) } : null;
  const canvas = new OffscreenCanvas(width, Math.min(height, STRIP_ROWS));
  const pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  for (let y = 0; y < height; y += STRIP_ROWS) {
    const rows = Math.min(STRIP_ROWS, height - y);
    pen.fillStyle = "#fff"; // what is transparent lies on white
    pen.fillRect(0, 0, width, rows);
    pen.drawImage(image, 0, y, width, rows, 0, 0, width, rows);
    const rgba = pen.getImageData(0, 0, width, rows).data;
    if (plan) addStrip(rgba, width, rows, y, plan);
    else copyStrip(rgba, pixels, y * width * 3);
  }
  if (plan) {
    for (let i = 0; i < pixels.length; i += 1) {
      const n = plan.counts[Math.floor(i / 3)];
      pixels[i] = Math.floor((plan.sums[i] + n / 2) / n);
    }
  }
  return { pixels, width: across, height: down };
}

// Undo how the camera was held: orientation 1-8 of CIPA DC-008, tag 274.
export function turnUpright({ pixels, width, height }, orientation) {
  if (orientation === 1) return { pixels, width, height };
  const isTurned = orientation >= 5;
  const [across, down] = isTurned ? [height, width] : [width, height];
  const isFlippedX = [2, 3, 6, 7].includes(orientation);
  const isFlippedY = [3, 4, 7, 8].includes(orientation);
  const out = new Uint8Array(pixels.length);
  let to = 0;
  for (let row = 0; row < down; row += 1) {
    const y = isFlippedY ? down - 1 - row : row;
    for (let column = 0; column < across; column += 1) {
      const x = isFlippedX ? across - 1 - column : column;
      const from = (isTurned ? x * width + y : y * width + x) * 3;
      out[to] = pixels[from];
      out[to + 1] = pixels[from + 1];
      out[to + 2] = pixels[from + 2];
      to += 3;
    }
  }
  return { pixels: out, width: across, height: down };
}

// A file that was chosen may be gone, or closed to the browser, when its turn comes.
async function readBytes(blob) {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch (error) {
    if (error.name === "NotAllowedError" || error.name === "SecurityError") throw new PhotoFault("no_permission", error.message);
    if (error.name === "NotFoundError" || error.name === "NotReadableError") throw new PhotoFault("not_found", error.message);
    throw new PhotoFault("too_much_memory", `this browser has no room for its ${blob.size} bytes: shrink it`);
  }
}

export async function decodePhoto(blob, limits, atLeast = null) {
  const found = readPhotoFile(await readBytes(blob), limits);
  const known = chooseDivisor(found.width, found.height, atLeast);
  if (found.format === "jpeg" && known > 1 && !found.hasProfile) {
    const small = decodeReduced(found.parts[0], known);
    if (small) return turnUpright(small, found.orientation);
  }
  let image;
  try {
    image = await createImageBitmap(new Blob(found.parts), { imageOrientation: "from-image" });
  } catch (error) {
    const known = ["tiff", "heic", "avif"].includes(found.format) ? "unsupported" : "corrupt";
    throw new PhotoFault(known, `this ${found.format.toUpperCase()} file cannot be decoded by this browser: ${error.message}`);
  }
  try {
    checkSize(image, limits.max_pixels);
    const divisor = found.format === "jpeg" ? chooseDivisor(image.width, image.height, atLeast) : 1;
    return turnUpright(readPixels(image, divisor), found.orientation);
  } catch (error) {
    if (error instanceof PhotoFault) throw error;
    throw new PhotoFault("too_much_memory", `this browser has no room for its ${image.width} x ${image.height} pixels: shrink it`);
  } finally {
    image.close();
  }
}
