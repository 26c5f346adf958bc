// The page: which model, which photograph, how far it is, what came out.

import { Results } from "./results.js";

const at = (id) => document.getElementById(id);
const results = new Results({ canvas: at("picture"), list: at("labels"), opacity: at("opacity"), under: at("under") });
let worker;
let photograph;

const list = await fetch("models/models.json", { cache: "no-cache" });
const served = list.ok ? await list.json() : [];
at("served").replaceChildren(...served.map(({ name }) => new Option(name, name)), new Option("of the Hub …", ""));
at("served").onchange = chooseModel;
at("precision").onchange = open;
at("hub").onsubmit = (event) => {
  event.preventDefault();
  open();
};
at("file").onchange = () => look(at("file").files[0]);
for (const name of ["dragover", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    if (name === "drop") look(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", (event) => look(event.clipboardData.files[0]));
chooseModel();
look(at("file").files[0]); // what was chosen before this script was there

/** A served model is opened at once, in a precision that it has; one of the Hub when its id has been entered. */
function chooseModel() {
  const model = served.find(({ name }) => name === at("served").value);
  for (const option of at("precision").options) option.disabled = model && !model.precisions.includes(option.value);
  if (at("precision").selectedOptions[0].disabled) at("precision").value = model.precisions[0];
  at("hub").hidden = Boolean(model);
  if (model) open();
  else close("Enter the id of a model of the Hub that has ONNX files.");
}

function open() {
  const name = at("served").value || at("id").value.trim();
  if (!name) return;
  close("");
  progress(0);
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => hear(data);
  worker.onerror = () => hear({ failed: "worker.js cannot be started; run `npm run build` and serve what it writes." });
  worker.postMessage({ model: { name, hub: !at("served").value, precision: at("precision").value } });
  if (photograph) worker.postMessage({ photograph });
}

function close(status) {
  worker?.terminate();
  worker = null;
  say({ status });
  at("result").hidden = true;
  at("progress").hidden = true;
}

function look(file) {
  if (!file) return;
  photograph = file;
  say({ status: worker ? `Looking at ${file.name} …` : "Choose a model." });
  worker?.postMessage({ photograph });
}

function hear({ progress: share, opened, answer, failed }) {
  if (share !== undefined) return progress(share);
  at("progress").hidden = true;
  if (opened) say({ status: photograph ? `Looking at ${photograph.name} …` : "Ready: drop a photograph." });
  if (failed) at("result").hidden = true;
  if (failed) say({ failed });
  if (!answer) return;
  at("result").hidden = false;
  results.show(answer);
  const { seconds, width, height, device } = answer.run;
  say({ status: `${seconds.toFixed(2)} s for ${width}x${height} pixels, ${device === "wasm" ? "WebAssembly" : "WebGPU"}` });
}

function progress(share) {
  at("progress").hidden = false;
  at("progress").value = share;
  say({ status: share < 1 ? `Loading the model: ${Math.floor(100 * share)} %` : "Starting ONNX Runtime …" });
}

function say({ status = "", failed = "" }) {
  at("status").textContent = status;
  at("failed").textContent = failed;
  at("failed").hidden = !failed;
}
