"""The gradio page, in a real browser: what it shows is what PyTorch says; bad input becomes a sentence."""

import io
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium
from families import MASK_RCNN, P2T, PVT, perturb, tiny_detector
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import hf_pvt

ROOT = Path(__file__).parent.parent
NAMES = {0: "background", 1: "lake", 2: "palace", 3: "tree", 4: "tree"}  # two labels of one name
LINES = {0: "background", 1: "lake", 2: "palace", 3: "tree (3)", 4: "tree (4)"}
PATIENCE = 40_000  # milliseconds
WIDTH, HEIGHT = 720, 480


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the page has it: the same numbers to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, a segmenter and a detector, what is none, and files to send."""
    folder = tmp_path_factory.mktemp("space")
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
    return folder


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


@pytest.fixture(scope="module")
def outside() -> Outside:
    return Outside()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def address(folder: Path, outside: Outside) -> Iterator[str]:
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """All that the browser asks for."""
    return []


@pytest.fixture
def page(browser: Browser, address: str, requests: list[str]) -> Iterator[Page]:
    """Loaded, the classifier open."""
    page = browser.new_page(viewport={"width": 1300, "height": 1100})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    says(page, "Send a photograph.")
    yield page
    page.close()


def says(page: Page, message: str) -> None:
    expect(page.locator("#message textarea")).to_have_value(re.compile(message))


def choose(page: Page, model: str) -> None:
    page.locator("#model input").fill(model)
    page.locator("#model input").press("Enter")
    page.locator("#model input").blur()


def send(page: Page, file: Path) -> None:
    page.locator("#file input[type=file]").set_input_files(file)


def picture_of(page: Page, image: Any) -> Image.Image:
    """The pixels that an <img> shows."""
    return Image.open(io.BytesIO(page.request.get(image.get_attribute("src")).body()))


def opened(folder: Path, name: str, auto_class: str) -> tuple[Any, Any, Image.Image]:
    """The model and its processor, and the photograph."""
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(folder / name).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder / name)
    return model, processor, Image.open(folder / "photo.png")


def test_scores(page: Page, folder: Path) -> None:
    """The labels in PyTorch's order, with its probabilities, and the time."""
    model, processor, photo = opened(folder, "classifier", "AutoModelForImageClassification")
    send(page, folder / "photo.png")
    says(page, rf"^[\d.]+ s for {WIDTH}x{HEIGHT} pixels on \d+ thread")
    with torch.inference_mode():
        scores = model(**processor(photo, return_tensors="pt")).logits[0].softmax(0)
    shares, labels = scores.sort(descending=True)
    lines = page.locator("#scores [data-testid$=confidence-set]")
    expect(lines).to_have_count(5)
    expect(page.locator("#scores [data-testid=label-output-value]")).to_have_text(LINES[int(labels[0])])
    for line, label, share in zip(lines.all(), labels.tolist(), shares.tolist(), strict=True):
        assert line.inner_text().split("\n")[0] == LINES[label]
        assert int(re.findall(r"(\d+)%", line.inner_text())[0]) == round(100 * share)


def test_a_label_alone(page: Page, folder: Path) -> None:
    """The legend has PyTorch's labels and shares; a click leaves that label's pixels, another brings all back."""
    model, processor, photo = opened(folder, "segmenter", "AutoModelForSemanticSegmentation")
    choose(page, "segmenter")
    says(page, "Send a photograph.")
    send(page, folder / "photo.png")
    says(page, " s for ")
    with torch.inference_mode():
        outputs = model(**processor(photo, return_tensors="pt"))
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(HEIGHT, WIDTH)])
    found, areas = labels.unique(return_counts=True)
    order = found[areas.argsort(descending=True)].tolist()
    assert len(order) >= 3 and 0 in order
    legend = page.locator("#overlay .legend-item")
    shares = {label: f"{100 * area / labels.numel():.1f} %" for label, area in zip(found.tolist(), areas, strict=True)}
    expect(legend).to_have_text([re.compile(rf"{re.escape(LINES[label])}\s+{shares[label]}") for label in order])

    def shown(expected: list[Any]) -> bool:
        """Whether these become the pixels of the legend's lines."""
        for _ in range(PATIENCE // 250):
            masks = page.locator("#overlay img.mask").all()
            if all(map(np.array_equal, (np.asarray(picture_of(page, mask))[..., 3] > 0 for mask in masks), expected)):
                return True
            page.wait_for_timeout(250)
        return False

    everything = [(labels.numpy() == label) & (label > 0) for label in order]
    assert shown(everything), "but for the background"
    for number in (1, order.index(0)):
        legend.nth(number).click()
        assert shown([(labels.numpy() == order[number]) & (line == number) for line in range(len(order))])
        legend.nth(number).click()
        assert shown(everything)


def test_objects(page: Page, folder: Path) -> None:
    """The picture of `draw_detections`, and the objects above the threshold with their scores."""
    model, processor, photo = opened(folder, "detector", "AutoModelForInstanceSegmentation")
    choose(page, "detector")
    says(page, "Send a photograph.")
    send(page, folder / "photo.png")
    says(page, " s for ")
    with torch.inference_mode():
        outputs = model(**processor(photo, return_tensors="pt"))
    settings = {"threshold": 0.3, "target_sizes": [(HEIGHT, WIDTH)], "return_binary_maps": True}
    (found,) = processor.post_process_instance_segmentation(outputs, **settings)
    assert len(found["scores"]) > 1
    expected = hf_pvt.draw_detections(photo, found, model.config.id2label)
    assert np.array_equal(picture_of(page, page.locator("#objects img")), expected)
    first = page.locator("#table tbody tr").first.inner_text().split()
    assert float(first[-1]) == pytest.approx(float(found["scores"][0]), abs=5.1e-4)


def test_look_inside(page: Page, folder: Path) -> None:
    """The pictures of `draw_features`, and of `draw_attention` at the point that was clicked, block and head too."""
    model, processor, photo = opened(folder, "classifier", "AutoModelForImageClassification")
    send(page, folder / "photo.png")
    page.get_by_role("tab", name="Feature maps").click()
    features = page.locator("#features img")
    expect(features).to_be_visible()
    assert np.array_equal(picture_of(page, features), hf_pvt.draw_features(model, photo, processor))
    page.get_by_role("tab", name="Attention").click()
    page.get_by_role("radio", name="3").check()
    photograph = page.locator("#clicked img")
    photograph.click(position={"x": 50, "y": 80})
    attention = page.locator("#attention img")
    expect(attention).to_be_visible()
    scale = WIDTH / photograph.bounding_box()["width"]
    near = [(50 * scale + dx, 80 * scale + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    points = [(round(x), round(y)) for x, y in near]

    def drawn(**choice: Any) -> list[np.ndarray]:
        return [
            np.asarray(hf_pvt.draw_attention(model, photo, p, 2, image_processor=processor, **choice)) for p in points
        ]

    shown = np.asarray(picture_of(page, attention))
    assert any(np.array_equal(shown, one) for one in drawn())
    before = attention.get_attribute("src")
    page.get_by_label("Head", exact=True).click()
    page.get_by_role("option", name="2").click()
    expect(attention).not_to_have_attribute("src", before)
    shown = np.asarray(picture_of(page, attention))
    assert any(np.array_equal(shown, one) for one in drawn(head=1))


def test_bad_files(page: Page, folder: Path) -> None:
    """A sentence, nothing left of the photograph before, and the next one is answered."""
    for file, message in (
        ("broken.png", "no image that can be read, or it is broken"),
        ("text.jpg", "no image that can be read"),
        ("huge.png", "12000x5000 pixels, more than 50 million"),
    ):
        send(page, folder / "photo.png")
        says(page, " s for ")
        expect(page.locator("#scores [data-testid=label-output-value]")).to_be_visible()
        page.locator("#file").get_by_label("Clear").click()
        says(page, "Send a photograph.")
        send(page, folder / file)
        says(page, message)
        expect(page.locator("#scores [data-testid=label-output-value]")).to_have_count(0)
        page.locator("#file").get_by_label("Clear").click()
        says(page, "Send a photograph.")
    no_trace(page, folder)


def no_trace(page: Page, folder: Path) -> None:
    assert "Traceback" not in page.content() + (folder / "log").read_text()


def test_wrong_models(page: Page, folder: Path) -> None:
    """A sentence, and no answer of the model before; the right one is answered again."""
    send(page, folder / "photo.png")
    says(page, " s for ")
    choose(page, "./nowhere")
    says(page, r"\./nowhere cannot be opened: ")
    expect(page.locator("#scores [data-testid=label-output-value]")).to_have_count(0)
    choose(page, "segmenter")
    says(page, " s for ")
    expect(page.locator("#overlay img.mask").first).to_be_attached()
    no_trace(page, folder)


def test_nothing_leaves(page: Page, folder: Path, address: str, requests: list[str], outside: Outside) -> None:
    """Neither the browser nor the server asks another host, until somebody names a model of the Hub."""
    send(page, folder / "photo.png")
    says(page, " s for ")
    elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert len(requests) > 20 and not elsewhere
    assert not outside.asked
    choose(page, "nobody/nothing")
    says(page, "nobody/nothing cannot be opened: ")
    assert outside.asked and all(asked.startswith(b"CONNECT huggingface.co:443") for asked in outside.asked)
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    no_trace(page, folder)


def test_other_machines_cannot_reach_it(address: str) -> None:
    """It listens on 127.0.0.1 alone, which 127.0.0.2 is not; and forbids browsers requests to others."""
    port = int(address.split(":")[2].rstrip("/"))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == 0
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.2", port)) != 0


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Of the page, which are siblings of its script."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "space")
    return import_module


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_photographs(modules: Callable[[str], Any], tmp_path: Path, kind: str) -> None:
    """Upright and RGB, whatever the file's name; transparency is white."""
    half = Image.new("L", (60, 40), 100)
    half.paste(200, (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6 if kind in ("JPEG", "PNG", "WEBP", "TIFF") else 1  # to be turned to the right
    half.save(tmp_path / "file.bin", kind, **({} if kind in ("BMP", "GIF") else {"exif": exif}))
    photo = modules("uploads").read_photograph(tmp_path / "file.bin")
    turned = exif[0x0112] == 6
    assert photo.mode == "RGB" and photo.size == ((40, 60) if turned else (60, 40))
    first, last = photo.getpixel((5, 5)), photo.getpixel((35, 55) if turned else (55, 35))
    assert max(first) - min(first) <= 3 and abs(first[0] - 200) <= 3 and abs(last[0] - 100) <= 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda file: file.write_bytes(empty_png(40_000, 40_000)), "far more than 50 million pixels"),
        (lambda file: file.write_bytes(empty_png(40_000, 2_000)), "40000x2000 pixels, more than 50 million"),
        (lambda file: Image.new("L", (10, 161)).save(file), "10x161 pixels, more than 16 times as long"),
        (lambda file: file.write_bytes(bytes(20 * 2**20 + 1)), "larger than 20 MB"),
        (lambda file: file.write_bytes(b""), "no image that can be read"),
        (lambda file: np.save(file.with_suffix(".npy"), 1) or file.with_suffix(".npy").rename(file), "no image"),
        (lambda file: Image.new("RGB", (9, 9)).save(file, "EPS"), "no image that can be read"),
    ],
    ids=["bomb", "pixels", "ratio", "bytes", "empty", "array", "postscript"],
)
def test_files_that_are_refused(
    modules: Callable[[str], Any], tmp_path: Path, content: Callable[[Path], Any], message: str
) -> None:
    content(tmp_path / "file.png")
    with pytest.raises(ValueError, match=message):
        modules("uploads").read_photograph(tmp_path / "file.png")


def test_models_that_are_refused(modules: Callable[[str], Any], folder: Path, tmp_path: Path) -> None:
    """Pickles, missing weights, other heads, code beside the weights, other channels: a sentence each."""
    open_model = modules("opened_models").open_model
    classifier = PVT.classifier(PVT.tiny_config())
    processor = hf_pvt.classification_image_processor(crop_size=56)

    def saved(name: str, model: Any, processor: Any = processor) -> Path:
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return tmp_path / name

    pickle = saved("pickle", classifier)
    (pickle / "model.safetensors").unlink()
    torch.save(classifier.state_dict(), pickle / "pytorch_model.bin")
    lacking = saved("lacking", PVT.model(PVT.tiny_config()))
    config = (lacking / "config.json").read_text()
    (lacking / "config.json").write_text(config.replace('"PvtModel"', '"PvtForImageClassification"'))
    foreign = saved("foreign", classifier)
    config = (foreign / "config.json").read_text()
    auto_map = '"auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"},'
    (foreign / "config.json").write_text(config.replace('"pvt"', '"unheard_of"').replace("{", "{" + auto_map, 1))
    (foreign / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    grey = hf_pvt.classification_image_processor(56, num_channels=1)
    for model, message in {
        pickle: "pickle cannot be opened: .*no file named model.safetensors",
        lacking: r"lacking lacks 2 of its weights, such as classifier.bias",
        saved("bare", PVT.model(PVT.tiny_config())): "it is a PvtModel; this page shows classifiers",
        foreign: "foreign cannot be opened: ",
        saved("grey", PVT.classifier(PVT.tiny_config(num_channels=1)), grey): "takes images of 1 channels",
        tmp_path / "nowhere": "nowhere cannot be opened: ",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            open_model(str(model))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_public_pages_offer_their_models_alone(modules: Callable[[str], Any], folder: Path) -> None:
    """Folders of the server are nobody's business."""
    public = modules("page").Page([str(folder / "classifier")], any_model=False)
    assert public.open(str(folder / "classifier")).kind == "ForImageClassification"
    with pytest.raises(ValueError, match="is not among the models of this page"):
        public.open(str(folder / "segmenter"))
    assert not public.model.allow_custom_value


def test_a_failure_is_no_stack_trace(modules: Callable[[str], Any], folder: Path, caplog: Any) -> None:
    """What nobody foresaw: the outputs are emptied, the message says so, the log has it all."""
    page = modules("page").Page([str(folder / "classifier")], any_model=True)
    update = page.safely(lambda: 1 / 0, [page.scores, page.block])()
    assert update == {page.scores: None, page.message: "This did not work; the log of the server says why."}
    assert "ZeroDivisionError" in caplog.text


def test_command_line(tmp_path: Path) -> None:
    """Without a model, or with a wrong one, it says so and does not start."""
    script = [sys.executable, str(ROOT / "examples" / "space" / "app.py")]
    for words, message in (
        ([], "there is no model in out/demo; run `make demo`"),
        (["--model", "./no"], "./no cannot"),
    ):
        result = subprocess.run([*script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_independent_scores(modules: Callable[[str], Any], folder: Path) -> None:
    """Of a model of several labels per image, which need not add up to 1; of crowds of labels the legend is short."""
    opened = modules("opened_models").open_model(str(folder / "classifier"))
    photo = Image.open(folder / "photo.png")
    with torch.inference_mode():
        logits = opened.model(**opened.processor(photo, return_tensors="pt")).logits[0]
    opened.model.config.problem_type = "multi_label_classification"
    try:
        scores = modules("answers").scores_of(opened, photo)
    finally:
        opened.model.config.problem_type = None
    assert list(scores.values()) == pytest.approx(logits.sigmoid().tolist()) and list(scores) == list(LINES.values())
    labels = np.sqrt(np.arange(60 * 60)).astype(int).reshape(60, 60)  # 60 labels, the last the largest
    names = {label: f"label {label}" for label in range(60)}
    lines = modules("answers").Segmentation(photo.resize((60, 60)), labels, names).lines()
    assert [labels for _, labels in lines[:2]] == [[59], [58]] and len(lines) == 25
    assert lines[-1] == (f"36 others  {100 * 36**2 / 3600:.1f} %", list(range(35, -1, -1)))
