// A model of a folder beside the page, or of the Hub: its labels, its processor and its ONNX file.

import {
  AutoConfig,
  AutoImageProcessor,
  AutoModel,
  env,
  LogLevel,
  ModelFileNotFoundError,
  Tensor,
} from "./vendor/transformers.min.js";
import { likeliestLabels, labelMap } from "./answers.js";
import { FILES } from "./precisions.js";
import { Processor } from "./processor.js";
import { Refusal } from "./refusal.js";

env.logLevel = LogLevel.ERROR; // it warns of families and processors that it does not know
env.useWasmCache = false; // by address only: a newer page would run with older WebAssembly
env.localModelPath = new URL("models/", self.location).pathname;

export class Checkpoint {
  /**
   * @param {{name: string, hub: boolean, precision: string}} model - a folder of models/ or a Hub id, a key of FILES
   * @param {(share: number) => void} onProgress - of the bytes, from 0 to 1
   */
  static async open({ name, hub, precision }, onProgress) {
    // Nothing leaves for the Hub unless its models are asked for. Only those are kept, by their commit: a folder beside
    // the page may hold another model tomorrow, and old labels would name its scores.
    [env.allowLocalModels, env.allowRemoteModels, env.useBrowserCache] = [!hub, hub, hub];
    env.fetch = (url, options) => fetch(url, hub ? options : { ...options, cache: "no-cache" });
    const revision = hub ? await lastCommit(name) : "main";
    const place = hub ? `huggingface.co/${name}` : `models/${name}`;
    const config = await read(AutoConfig.from_pretrained(name, { revision }), `${place}/config.json`);
    const [, task] = config.architectures?.[0]?.match(/For(ImageClassification|SemanticSegmentation)$/) ?? [];
    if (!task) {
      const given = config.architectures?.[0] ?? "a model without architectures in its config.json";
      throw new Refusal(`${name} is ${given}; this page shows classifiers and segmenters.`);
    }
    const { config: settings } = await read(
      AutoImageProcessor.from_pretrained(name, { revision }),
      `${place}/preprocessor_config.json`,
    );
    const processor = new Processor(settings);
    const device = await chooseDevice();
    const progress_callback = ({ status, loaded, total }) => status === "progress_total" && onProgress(loaded / total);
    const options = { config, revision, dtype: precision, device, progress_callback, use_external_data_format: false };
    const model = await read(AutoModel.from_pretrained(name, options), `${place}/onnx/${FILES[precision]}`);
    return Object.assign(new Checkpoint(), { name, config, task, processor, model, device });
  }

  /** The labels of an image with their scores (ImageClassification), or the label map of its `shown` pixels. */
  async answer({ pixels, shown }) {
    const { data, width, height } = this.processor.process(pixels);
    const start = performance.now();
    const { logits } = await this.model({ pixel_values: new Tensor("float32", data, [1, 3, height, width]) });
    const seconds = (performance.now() - start) / 1000;
    this.check(logits);
    const [, ...dims] = logits.dims;
    const found =
      this.task === "ImageClassification"
        ? { labels: likeliestLabels(logits.data, this.config) }
        : { labelMap: labelMap(logits.data, dims, shown), names: this.config.id2label };
    return { ...found, run: { seconds, width, height, device: this.device } };
  }

  check(logits) {
    const expected = this.task === "ImageClassification" ? 2 : 4;
    const labels = Object.keys(this.config.id2label).length;
    if (logits?.dims.length !== expected || logits.dims[1] !== labels) {
      const given = logits ? `logits of shape ${logits.dims.join("x")}` : "no logits";
      throw new Refusal(`${this.name} answers with ${given} for the ${labels} labels of its config.json; export it again.`);
    }
    if (!logits.data.every(Number.isFinite)) {
      throw new Refusal(`${this.name} answers with scores that are no numbers on ${this.device}; try another precision.`);
    }
  }
}

async function lastCommit(name) {
  const response = await fetch(`${env.remoteHost}api/models/${name}`).catch(() => {
    throw new Refusal(`huggingface.co cannot be reached for ${name}; choose a model that is served beside the page.`);
  });
  if (!response.ok) {
    throw new Refusal(`huggingface.co has no public model ${name}; enter an id such as organisation/model.`);
  }
  return (await response.json()).sha;
}

/** WebGPU where there is a graphics processor; its build of ONNX Runtime is twice as large as that without. */
async function chooseDevice() {
  const adapter = await navigator.gpu?.requestAdapter();
  const device = adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
  const file = new URL(`vendor/ort-wasm-simd-threaded${device === "webgpu" ? ".asyncify" : ""}`, self.location).href;
  env.backends.onnx.wasm.wasmPaths = { mjs: `${file}.mjs`, wasm: `${file}.wasm` };
  return device;
}

async function read(promise, file) {
  try {
    return await promise;
  } catch (error) {
    console.error(error);
    throw new Refusal(
      error instanceof ModelFileNotFoundError
        ? `${file} is not there, or not public; save a model with its processor and run conversion/export_onnx.py on it.`
        : `${file} cannot be opened (${error.message ?? error}); export the model again, or try another precision.`,
    );
  }
}
