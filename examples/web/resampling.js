// Images at another size, as Pillow and the published segmentation code resize them: canvases do it differently in each
// browser. An image is {data, width, height} with data (height, width, 3) of 8 bits.

const BITS = 22; // of the weights' fractions, as in Pillow: the same integers, so the same pixels

// By Pillow's number: half the width of the window, in pixels of the smaller image, and the weight at a distance.
const FILTERS = {
  1: { support: 3, weight: (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) }, // bilinear
  3: { support: 2, weight: (x) => cubic(Math.abs(x), -0.5) }, // bicubic
};

export const RESAMPLES = Object.keys(FILTERS).map(Number);

/** Pillow's `Image.resize`: a filter that is widened where an image shrinks, along rows, then along columns. */
export function resized({ data, width, height }, to, resample) {
  const rows = along(data, [height, width, 3], to.width, FILTERS[resample]);
  return { data: along(rows, [1, height, to.width * 3], to.height, FILTERS[resample]), ...to };
}

/** OpenCV's INTER_LINEAR, within one level: between the four nearest pixels, however much an image shrinks. */
export function betweenNeighbours({ data, width, height }, to) {
  const out = new Uint8ClampedArray(to.height * to.width * 3); // rounds halves to even, as torch does
  const columns = neighbours(width, to.width);
  let place = 0;
  for (const row of neighbours(height, to.height)) {
    const [top, bottom] = [row.low * width * 3, row.high * width * 3];
    for (const { low, high, share } of columns) {
      for (let channel = 0; channel < 3; channel++) {
        const [left, right] = [3 * low + channel, 3 * high + channel];
        const above = data[top + left] * (1 - share) + data[top + right] * share;
        const below = data[bottom + left] * (1 - share) + data[bottom + right] * share;
        out[place++] = above * (1 - row.share) + below * row.share;
      }
    }
  }
  return { data: out, ...to };
}

/** Of each of `to` places the two nearest of `from`, and the share of the second; corners are not aligned. */
export function neighbours(from, to) {
  return Array.from({ length: to }, (_, place) => {
    const middle = Math.max(0, ((place + 0.5) * from) / to - 0.5);
    const low = Math.min(Math.floor(middle), from - 1);
    return { low, high: Math.min(low + 1, from - 1), share: middle - low };
  });
}

/** (outer, from, inner) -> (outer, to, inner) */
function along(data, [outer, from, inner], to, filter) {
  if (from === to) return data;
  const out = new Uint8ClampedArray(outer * to * inner);
  const windows = Array.from({ length: to }, (_, place) => weightsAt(place, from, to, filter));
  let place = 0;
  for (let block = 0; block < outer; block++) {
    for (const { first, weights } of windows) {
      const start = (block * from + first) * inner;
      for (let offset = start; offset < start + inner; offset++) {
        let sum = 2 ** (BITS - 1);
        for (let k = 0; k < weights.length; k++) sum += data[offset + k * inner] * weights[k];
        out[place++] = sum >> BITS;
      }
    }
  }
  return out;
}

/** The first pixel that counts, and the weights of it and those behind it, as integers. */
function weightsAt(place, from, to, { support, weight }) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const middle = (place + 0.5) * scale;
  const first = Math.max(Math.trunc(middle - support * stretch + 0.5), 0);
  const end = Math.min(Math.trunc(middle + support * stretch + 0.5), from);
  const weights = Array.from({ length: end - first }, (_, k) => weight((first + k - middle + 0.5) * (1 / stretch)));
  const total = weights.reduce((sum, one) => sum + one, 0);
  return { first, weights: weights.map((one) => awayFromZero((one / total) * 2 ** BITS)) };
}

const awayFromZero = (x) => Math.trunc(x + Math.sign(x) / 2);

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** https://en.wikipedia.org/wiki/Bicubic_interpolation#Bicubic_convolution_algorithm */
function cubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}
