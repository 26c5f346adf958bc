// What the page shows of an answer: the photograph, painted or not, and its labels beside it.

import { legendOf, painted } from "./overlay.js";

const MOST_LABELS = 5; // of a classifier
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Draws into `canvas` and fills the list; a click on a label of a segmenter shows it alone, another click all again. */
export class Results {
  constructor({ canvas, list, opacity, under }) {
    Object.assign(this, { canvas, list, opacity, under });
    opacity.oninput = () => this.paint();
    canvas.onpointermove = (event) => this.name(event);
    canvas.onpointerleave = () => (under.textContent = "");
  }

  show({ photograph, labels, labelMap, names }) {
    Object.assign(this, { photograph, labelMap, names, alone: null });
    [this.canvas.width, this.canvas.height] = [photograph.width, photograph.height];
    this.canvas.style.setProperty("--ratio", photograph.width / photograph.height);
    this.legend = labelMap ? legendOf(labelMap, names) : [];
    const lines = labelMap ? this.legend.map((entry) => this.entry(entry)) : labels.slice(0, MOST_LABELS).map(bar);
    this.list.replaceChildren(...lines);
    this.opacity.parentElement.hidden = !labelMap;
    this.under.textContent = "";
    this.paint();
  }

  paint() {
    const shown = this.legend.filter(({ label }) => this.alone === null || label === this.alone);
    const alpha = this.opacity.value / 100;
    const pixels = this.labelMap ? painted(this.photograph, this.labelMap, shown, alpha) : this.photograph;
    this.canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** A line of the legend. */
  entry({ label, name, share, colour }) {
    const button = element("button", "label", element("span", "name", name), element("span", "share", percent(share)));
    const box = element("span", "box");
    if (colour) box.style.background = `rgb(${colour})`;
    button.prepend(box);
    button.disabled = !colour;
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => {
      this.alone = this.alone === label ? null : label;
      for (const one of this.list.querySelectorAll("button")) {
        one.setAttribute("aria-pressed", String(one === button && this.alone !== null));
      }
      this.paint();
    };
    return element("li", "", button);
  }

  /** Says which label the pointer is on. */
  name({ offsetX, offsetY }) {
    if (!this.labelMap) return;
    const { canvas } = this;
    const [x, y] = [(offsetX * canvas.width) / canvas.clientWidth, (offsetY * canvas.height) / canvas.clientHeight];
    this.under.textContent = this.names[this.labelMap[Math.trunc(y) * canvas.width + Math.trunc(x)]] ?? "";
  }
}

/** A line of a classifier: name, score, and a bar as long as the score. */
function bar({ name, score }) {
  const meter = element("meter", "");
  meter.value = score;
  return element("li", "bar", element("span", "name", name), element("span", "share", percent(score)), meter);
}

function element(tag, className, ...children) {
  const made = Object.assign(document.createElement(tag), { className });
  made.append(...children);
  return made;
}
