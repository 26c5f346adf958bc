// node build.mjs [--out FOLDER] [MODEL ...]: the page, what it needs of node_modules, and copies of saved models that have
// an onnx/ folder, in one folder that any web server can serve.

import { cp, mkdir, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { FILES } from "./precisions.js";

const HERE = dirname(fileURLToPath(import.meta.url));
const PAGE = /^(?!build).*\.(html|css|js)$|^README\.md$/;
const VENDOR = [
  "@huggingface/transformers/dist/transformers.min.js",
  ...["", ".asyncify"].flatMap((build) => [
    `onnxruntime-web/dist/ort-wasm-simd-threaded${build}.mjs`,
    `onnxruntime-web/dist/ort-wasm-simd-threaded${build}.wasm`,
  ]),
];

const { values, positionals: models } = parseArgs({
  options: { out: { type: "string", default: join(HERE, "dist") } },
  allowPositionals: true,
});
const unfinished = `${resolve(values.out)}.unfinished`;
try {
  await build(unfinished);
  await rm(values.out, { recursive: true, force: true });
  await rename(unfinished, values.out);
  console.log(`${values.out} is ready; python3 -m http.server --bind 127.0.0.1 --directory ${values.out} shows it.`);
} catch (error) {
  await rm(unfinished, { recursive: true, force: true });
  console.error(error.message);
  process.exitCode = 1;
}

async function build(out) {
  if ((await exists(values.out)) && !(await exists(join(values.out, "models", "models.json")))) {
    throw new Error(`${values.out} is there and is no page that this script made; give another --out.`);
  }
  await rm(out, { recursive: true, force: true });
  await mkdir(join(out, "vendor"), { recursive: true });
  for (const name of (await readdir(HERE)).filter((name) => PAGE.test(name))) await cp(join(HERE, name), join(out, name));
  for (const file of VENDOR) {
    const from = join(HERE, "node_modules", file);
    if (!(await exists(from))) throw new Error(`${from} is missing; run npm ci in ${HERE} first.`);
    await cp(from, join(out, "vendor", basename(file)));
  }
  const served = [];
  for (const model of models.map((folder) => resolve(folder))) served.push(await serve(model, join(out, "models")));
  await mkdir(join(out, "models"), { recursive: true });
  await writeFile(join(out, "models", "models.json"), JSON.stringify(served));
}

/** Copies what the page reads of a model's folder, and says under which name and in which precisions. */
async function serve(folder, models) {
  const name = basename(folder);
  const precisions = [];
  for (const [precision, file] of Object.entries(FILES)) {
    if (await exists(join(folder, "onnx", file))) precisions.push(precision);
  }
  if (!precisions.length) throw new Error(`${folder} has no onnx/model.onnx; run conversion/export_onnx.py on it first.`);
  if (await exists(join(models, name))) throw new Error(`two models are named ${name}; rename one of the folders.`);
  const files = ["config.json", "preprocessor_config.json", ...precisions.map((one) => join("onnx", FILES[one]))];
  for (const file of files) {
    if (!(await exists(join(folder, file)))) throw new Error(`${folder} has no ${file}; save model and processor there.`);
    await cp(join(folder, file), join(models, name, file));
  }
  return { name, precisions };
}

async function exists(path) {
  return stat(path).then(
    () => true,
    () => false,
  );
}
