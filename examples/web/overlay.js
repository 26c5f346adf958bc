// A label map painted over its photograph: hf_pvt/drawing/segmentations.py in JavaScript.

const BACKGROUND = "background"; // the name of what is not painted, in any case
const OUTLINE_SHARE = 0.003; // of the mean side: the width of a label's outline, at least a pixel
const STEPS = [1, 2, 3].map((i) => 1.2207440846057596 ** -i); // the root of x**4 = x + 1

/** The labels of a map by area, the largest first: {label, name, share, colour}, no colour for the background. */
export function legendOf(labelMap, names) {
  const areas = new Map();
  for (const label of labelMap) areas.set(label, (areas.get(label) ?? 0) + 1);
  return [...areas]
    .sort(([, one], [, other]) => other - one)
    .map(([label, area]) => {
      const colour = names[label].toLowerCase() === BACKGROUND ? null : distinctColour(label);
      return { label, name: names[label], share: area / labelMap.length, colour };
    });
}

/** The photograph (RGBA) with the legend's labels: (1 - alpha) of it and alpha of the colour, which outlines have whole. */
export function painted({ data, width, height }, labelMap, legend, alpha) {
  const out = new ImageData(new Uint8ClampedArray(data), width, height);
  const outline = outlineOf(labelMap, width, height);
  const colours = new Map(legend.filter(({ colour }) => colour).map(({ label, colour }) => [label, colour]));
  labelMap.forEach((label, place) => {
    const colour = colours.get(label);
    if (!colour) return;
    const share = outline[place] ? 1 : alpha;
    for (let channel = 0; channel < 3; channel++) {
      const here = 4 * place + channel;
      out.data[here] = (1 - share) * data[here] + share * colour[channel];
    }
  });
  return out;
}

/** Hue, saturation and value each walk by an irrational step: no two labels come close in all three. */
export function distinctColour(label) {
  const [hue, saturation, value] = STEPS.map((step) => (label * step) % 1);
  return colourOf(hue, 0.4 + 0.6 * (1 - saturation), 0.5 + 0.5 * (1 - value));
}

/** https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative */
function colourOf(hue, saturation, value) {
  return [5, 3, 1].map((n) => {
    const k = (n + 6 * hue) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

/** Which pixels are nearer to another label than the outline's width, along rows or columns. */
function outlineOf(labelMap, width, height) {
  const outline = new Uint8Array(labelMap.length);
  const most = Math.max(1, Math.round((OUTLINE_SHARE * (width + height)) / 2));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const place = y * width + x;
      for (let step = 1; step <= most; step++) {
        if (x >= step) mark(place, place - step);
        if (y >= step) mark(place, place - step * width);
      }
    }
  }
  return outline;

  function mark(one, other) {
    if (labelMap[one] !== labelMap[other]) outline[one] = outline[other] = 1;
  }
}
