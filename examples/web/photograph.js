// What a file shows, as hf_pvt/images/image_inputs.py reads it: upright, RGB, transparency on white.

import { Refusal } from "./refusal.js";

const MOST_PIXELS = 64e6; // of a file: more takes a gigabyte before it is made small
const MOST_SHOWN = 2e6; // on the page

/** The photograph itself, (height, width, 3) of 8 bits, and RGBA pixels of it that are few enough to draw on. */
export async function readPhotograph(file) {
  const bitmap = await decoded(file);
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    throw new Refusal(
      `${file.name} has ${width}x${height} pixels, this page takes ${MOST_PIXELS / 1e6} million; make it smaller first.`,
    );
  }
  const scale = Math.min(1, Math.sqrt(MOST_SHOWN / (width * height)));
  const [shownWidth, shownHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const pixels = drawn(bitmap, width, height);
  const shown = scale === 1 ? pixels : drawn(bitmap, shownWidth, shownHeight);
  bitmap.close();
  return { pixels: withoutAlpha(pixels), shown };
}

async function decoded(file) {
  try {
    // No colour management: Pillow has none, and models learn from what it reads.
    return await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Refusal(
      `${file.name} cannot be read as an image; give a JPEG, PNG, WebP, GIF, BMP or AVIF file that opens in this browser.`,
    );
  }
}

function drawn(bitmap, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** (H, W, 4) -> (H, W, 3) */
function withoutAlpha({ data, width, height }) {
  const out = new Uint8ClampedArray(height * width * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    out[to] = data[from];
    out[to + 1] = data[from + 1];
    out[to + 2] = data[from + 2];
  }
  return { data: out, width, height };
}
