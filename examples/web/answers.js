// What logits mean: the labels of an image, or of each of its pixels.

import { neighbours } from "./resampling.js";

/** All labels of logits (K) with their scores, the likeliest first, as Transformers' pipeline scores them. */
export function likeliestLabels(logits, { id2label, problem_type }) {
  const independent = problem_type === "multi_label_classification" || logits.length === 1;
  const scores = independent ? Array.from(logits, (x) => 1 / (1 + Math.exp(-x))) : softmax(logits);
  return scores.map((score, label) => ({ name: id2label[label], score })).sort((a, b) => b.score - a.score);
}

/** The label of the highest logit per pixel: logits (K, h, w), resized bilinearly, become labels (height, width). */
export function labelMap(logits, [count, h, w], { width, height }) {
  const labels = new Uint16Array(height * width);
  const columns = neighbours(w, width);
  const [best, between] = [new Float32Array(width), new Float32Array(w)];
  neighbours(h, height).forEach(({ low, high, share }, row) => {
    const found = labels.subarray(row * width, (row + 1) * width);
    best.fill(-Infinity);
    for (let label = 0; label < count; label++) {
      const [above, below] = [low, high].map((line) => (label * h + line) * w);
      for (let x = 0; x < w; x++) between[x] = logits[above + x] * (1 - share) + logits[below + x] * share;
      for (let x = 0; x < width; x++) {
        const column = columns[x];
        const score = between[column.low] * (1 - column.share) + between[column.high] * column.share;
        if (score > best[x]) [best[x], found[x]] = [score, label];
      }
    }
  });
  return labels;
}

function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (x) => Math.exp(x - highest));
  const total = powers.reduce((sum, one) => sum + one, 0);
  return powers.map((one) => one / total);
}
