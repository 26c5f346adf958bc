"""The time of a forward in transformers.js, in headless Chromium on one thread of WebAssembly."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

PACKAGES = Path(__file__).parent.parent / "examples" / "web" / "node_modules"
PAGE = """<script type="module">
import { AutoModel, Tensor, env } from "./transformers/transformers.min.js";
env.allowLocalModels = true;
env.allowRemoteModels = false;
env.localModelPath = "/";
env.backends.onnx.wasm.wasmPaths = new URL("./ort/", location).href;
env.backends.onnx.wasm.numThreads = 1;
const model = await AutoModel.from_pretrained("model", { device: "wasm", dtype: "fp32" });
window.median = async (size, seconds) => {
  const pixel_values = new Tensor("float32", new Float32Array(3 * size * size).map(Math.random), [1, 3, size, size]);
  const times = [];
  await model({ pixel_values });
  const end = performance.now() + 1000 * seconds;
  while (times.length < 3 || performance.now() < end) {
    const start = performance.now();
    await model({ pixel_values });
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)] / 1000;
};
</script>"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no result."""


def seconds_in_browser(model: Path, sizes: Sequence[int], seconds: float) -> dict[str, float]:
    """Median seconds at each size of `onnx/model.onnx` in a saved model's folder.

    Raises:
        FileNotFoundError: Chromium or the packages of examples/web are missing.
    """
    from playwright.sync_api import sync_playwright

    packages, chromium = Path(os.environ.get("HF_PVT_NODE_MODULES", PACKAGES)), shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("Chromium is missing; install it with `apt-get install chromium`.")
    if not packages.is_dir():
        raise FileNotFoundError(f"{packages} is missing; run `npm ci` in {PACKAGES.parent}.")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "index.html").write_text(PAGE)
        (root / "model").symlink_to(model.resolve())
        (root / "transformers").symlink_to((packages / "@huggingface/transformers/dist").resolve())
        (root / "ort").symlink_to((packages / "onnxruntime-web/dist").resolve())
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            with sync_playwright() as playwright:
                # Root has no sandbox.
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
                )
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
                page.wait_for_function("() => Boolean(window.median)", timeout=120_000)
                medians = {str(size): page.evaluate(f"median({size}, {seconds})") for size in sizes}
                browser.close()
            server.shutdown()
    return medians
