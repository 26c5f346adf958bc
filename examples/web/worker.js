// One model, in a thread of its own, so that the page stays alive while it works; the page ends it with the model.

import { Checkpoint } from "./checkpoint.js";
import { readPhotograph } from "./photograph.js";
import { Refusal } from "./refusal.js";

let opening; // a promise: a photograph for a model that cannot be opened is told why again
let before = Promise.resolve();

self.onmessage = ({ data }) => {
  before = before.then(() => handle(data)).catch(tell);
};

async function handle({ model, photograph }) {
  if (model) {
    opening = Checkpoint.open(model, (progress) => self.postMessage({ progress }));
    self.postMessage({ opened: (await opening).name });
  } else {
    const checkpoint = await opening;
    const image = await readPhotograph(photograph);
    self.postMessage({ answer: { ...(await checkpoint.answer(image)), photograph: image.shown } });
  }
}

function tell(error) {
  console.error(error);
  self.postMessage({ failed: error instanceof Refusal ? error.message : `This did not work: ${error.message ?? error}` });
}
