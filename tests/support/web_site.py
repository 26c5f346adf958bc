"""The page of examples/web, built, served on loopback and opened, and the models that it shows."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from families import P2T, PVT_V2, perturb
from onnx_files import export
from paths import EXAMPLES
from playwright.sync_api import Page, expect
from torch import manual_seed
from transformers import PreTrainedModel

import hf_pvt

WEB = EXAMPLES / "web"
PATIENCE = 60_000  # milliseconds, for machines that do other work
FLOWERS = {0: "rose", 1: "tulip", 2: "aster", 3: "lily", 4: "iris"}
SCENE = {0: "background", 1: "sky", 2: "wall", 3: "tree", 4: "road"}


class FilesHandler(SimpleHTTPRequestHandler):
    """Sends files, each with some headers more."""

    def __init__(self, *args: Any, more_headers: Mapping[str, str], **kwargs: Any) -> None:
        self.more_headers = more_headers
        super().__init__(*args, **kwargs)

    def end_headers(self) -> None:
        for name, value in self.more_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Playwright has the requests."""


@contextmanager
def served(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a folder's files."""
    handler = partial(FilesHandler, directory=folder, more_headers=headers or {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def tiny_models() -> dict[str, tuple[PreTrainedModel, Any]]:
    """A classifier and a segmenter that say several things of a photograph, with small processors."""
    manual_seed(0)
    classifier = PVT_V2.classifier(PVT_V2.shallow_config(id2label=FLOWERS)).eval()
    segmenter = P2T.segmenter(P2T.shallow_config(id2label=SCENE)).eval()
    for model in (classifier, segmenter):
        perturb(model)
    segmentation = hf_pvt.segmentation_image_processor(size={"shortest_edge": 128, "longest_edge": 512})
    return {"flowers": (classifier, hf_pvt.classification_image_processor(96)), "scenes": (segmenter, segmentation)}


def save(model: PreTrainedModel, processor: Any, folder: Path, **precisions: bool) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    export(model, processor, folder, **precisions)


def build(*models: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`npm run build`."""
    node = shutil.which("node")
    if node is None:
        pytest.fail("Node.js is missing; install it with `apt-get install nodejs npm`, version 20 or newer.")
    if not (WEB / "node_modules").exists():
        pytest.fail("the packages of examples/web are missing; install them with `npm ci --prefix examples/web`.")
    command = [node, WEB / "build.mjs", "--out", out, *models]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def choose(page: Page, model: str) -> None:
    """Choose a served model and wait until it is there."""
    page.locator("#served").select_option(model)
    expect(page.locator("#status")).to_have_text("Ready: drop a photograph.", timeout=PATIENCE)


def give(page: Page, photograph: Path) -> None:
    """Give a photograph and wait for the answer."""
    page.locator("#file").set_input_files(photograph)
    expect(page.locator("#result")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text(" s for ")


def message(page: Page) -> str:
    """The message of what went wrong, which has to appear."""
    expect(page.locator("#failed")).to_be_visible(timeout=PATIENCE)
    return page.locator("#failed").inner_text()
