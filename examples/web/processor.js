// From a photograph to pixel_values, by preprocessor_config.json: hf_pvt/images/image_processing_pvt.py in JavaScript.
//
// transformers.js has neither sides that are multiples of a number nor Pillow's filters in a browser.

import { Refusal } from "./refusal.js";
import { betweenNeighbours, resized, RESAMPLES } from "./resampling.js";

const UNDERSTOOD = /^Pvt(Segmentation)?ImageProcessor(Pil|Fast)?$/;
const STEPS = ["do_resize", "do_center_crop", "do_rescale", "do_normalize"];
const OF_NO_CONCERN = ["do_convert_rgb", "do_reduce_labels"]; // photographs come in as RGB, and without label maps

export class Processor {
  /** Throws a Refusal where the configuration says what this page cannot do: it must not be left out silently. */
  constructor(config) {
    this.config = { rescale_factor: 1 / 255, ...config };
    const { image_processor_type: type, image_mean: mean, image_std: std, resample } = config;
    const unknown = Object.keys(config).filter(
      (key) => key.startsWith("do_") && config[key] && !STEPS.includes(key) && !OF_NO_CONCERN.includes(key),
    );
    if (!UNDERSTOOD.test(type)) refuse(`it is a ${type}, expected PvtImageProcessor or PvtSegmentationImageProcessor`);
    if (unknown.length) refuse(`${unknown.join(", ")} is set, which this page does not do`);
    if (config.do_resize && !RESAMPLES.includes(resample)) refuse(`resample is ${resample}, expected ${RESAMPLES}`);
    if (config.do_normalize && (mean?.length !== 3 || std?.length !== 3)) {
      refuse(`image_mean and image_std have not 3 numbers, as the colours of a photograph`);
    }
    this.forMaps = type.includes("Segmentation");
    if (this.forMaps && config.do_center_crop) refuse("do_center_crop is set for label maps, which are only resized");
  }

  /** pixel_values (3, H, W) of an image: {data, height, width}. */
  process(image) {
    for (const size of this.sizes(image)) {
      image = this.config.published_resampling
        ? betweenNeighbours(image, size)
        : resized(image, size, this.config.resample);
    }
    if (this.config.do_center_crop) image = centreCrop(image, this.config.crop_size);
    return this.normalized(image);
  }

  /** To which sizes the image is brought, one after the other. */
  sizes({ width, height }) {
    const { do_resize, size, size_divisor, published_resampling } = this.config;
    if (!do_resize) return [];
    if (!this.forMaps) return [sizeForLabels(width, height, size)];
    const divisors = published_resampling ? [1, size_divisor] : [size_divisor];
    return divisors.map((divisor) => sizeForMaps(width, height, size, divisor));
  }

  /** (H, W, 3) of 8 bits -> (3, H, W) of floats */
  normalized({ data, width, height }) {
    const { do_rescale, rescale_factor, do_normalize, image_mean, image_std } = this.config;
    const out = new Float32Array(3 * height * width);
    for (let channel = 0; channel < 3; channel++) {
      const scale = do_rescale ? rescale_factor : 1;
      const [mean, std] = do_normalize ? [image_mean[channel], image_std[channel]] : [0, 1];
      for (let place = 0; place < height * width; place++) {
        out[channel * height * width + place] = (data[3 * place + channel] * scale - mean) / std;
      }
    }
    return { data: out, width, height };
  }
}

/** A classifier's: the shorter side, or both. */
function sizeForLabels(width, height, size) {
  if (size.height && size.width) return { width: size.width, height: size.height };
  const edge = size.shortest_edge;
  if (!edge || size.longest_edge) refuse(`size is ${JSON.stringify(size)}, expected shortest_edge, or height and width`);
  return width <= height
    ? { width: edge, height: Math.trunc((edge * height) / width) }
    : { width: Math.trunc((edge * width) / height), height: edge };
}

/** A segmenter's: `size` reached in one dimension, then each side a multiple of `divisor`. */
function sizeForMaps(width, height, size, divisor) {
  if (size.height && size.width) [width, height] = [size.width, size.height];
  else {
    const shortest = (size.shortest_edge ?? Infinity) / Math.min(width, height);
    const scale = Math.min(shortest, (size.longest_edge ?? Infinity) / Math.max(width, height));
    if (scale === Infinity) refuse(`size is ${JSON.stringify(size)}, expected edges, or height and width`);
    [width, height] = [width, height].map((side) => Math.trunc(side * scale + 0.5));
  }
  const multiple = (side) => Math.ceil(side / divisor) * divisor;
  return { width: multiple(width), height: multiple(height) };
}

/** The corner is truncated, as Transformers' is. */
function centreCrop({ data, width, height }, size) {
  const [top, left] = [Math.trunc((height - size.height) / 2), Math.trunc((width - size.width) / 2)];
  if (height < size.height || width < size.width) {
    refuse(`crop_size ${size.width}x${size.height} is larger than the resized image of ${width}x${height} pixels`);
  }
  const out = new Uint8ClampedArray(size.height * size.width * 3);
  for (let row = 0; row < size.height; row++) {
    const start = ((top + row) * width + left) * 3;
    out.set(data.subarray(start, start + size.width * 3), row * size.width * 3);
  }
  return { data: out, width: size.width, height: size.height };
}

function refuse(reason) {
  throw new Refusal(`This page cannot prepare images for the model: ${reason}, in its preprocessor_config.json.`);
}
