"""The gradio page as a process of its own, what it is given, and where it would talk to."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from families import MASK_RCNN, P2T, PVT, perturb, tiny_detector
from paths import ROOT
from PIL import Image

import hf_pvt

NAMES = {0: "background", 1: "lake", 2: "palace", 3: "tree", 4: "tree"}  # two labels of one name
LINES = {0: "background", 1: "lake", 2: "palace", 3: "tree (3)", 4: "tree (4)"}
WIDTH, HEIGHT = 720, 480


def save_models(folder: Path) -> None:
    """A classifier, a segmenter and a detector, what is none, and files to send."""
    torch.manual_seed(0)
    names = {"id2label": NAMES, "label2id": {}}
    for name, model in {
        "classifier": PVT.classifier(PVT.tiny_config(**names)),
        "segmenter": P2T.segmenter(P2T.tiny_config(**names)),
    }.items():
        perturb(model, 0.2)
        model.save_pretrained(folder / name)
    hf_pvt.classification_image_processor(crop_size=56).save_pretrained(folder / "classifier")
    hf_pvt.segmentation_image_processor(size={"shortest_edge": 64}).save_pretrained(folder / "segmenter")
    tiny_detector(MASK_RCNN).save_pretrained(folder / "detector")
    hf_pvt.detection_image_processor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(
        folder / "detector"
    )
    corners = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((WIDTH, HEIGHT)).save(folder / "photo.png")
    (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:500])
    (folder / "text.jpg").write_text("no image")
    (folder / "huge.png").write_bytes(empty_png(12_000, 5_000))


def empty_png(width: int, height: int) -> bytes:
    """A file that promises so many pixels, and has none."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b""), b"IEND": b""}
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Outside:
    """Where a process is sent by its proxy settings: notes who wants to talk to other hosts, and hangs up."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            with connection:
                self.asked.append(connection.recv(4096))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def running_page(folder: Path, outside: Outside) -> Iterator[str]:
    """The page's, with the three models, as a process of its own."""
    port = free_port()
    command = [sys.executable, str(ROOT / "examples" / "space" / "app.py"), "--port", str(port)]
    command += [word for name in ("classifier", "segmenter", "detector") for word in ("--model", name)]
    proxies = {f"{name}_proxy": outside.address for name in ("http", "https", "all")}
    proxies |= {name.upper(): value for name, value in proxies.items()}
    local = {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | proxies | local
    with open(folder / "log", "w") as log:
        app = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 90
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert app.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/"
        finally:
            app.terminate()
            app.wait(30)
