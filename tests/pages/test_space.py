"""The gradio page, in a real browser: what it shows is what PyTorch says; bad input becomes a sentence."""

import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import chromium
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from space_runs import HEIGHT, LINES, WIDTH, Outside, running_page, save_models

import hf_pvt

pytestmark = pytest.mark.browser

PATIENCE = 40_000  # milliseconds


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the page has it: the same numbers to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def outside() -> Outside:
    return Outside()


@pytest.fixture(scope="module")
def address(folder: Path, outside: Outside) -> Iterator[str]:
    with running_page(folder, outside) as address:
        yield address


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
    rows = re.findall(r"(LABEL_\d)\s+([\d.]+)", page.locator("#table").inner_text())
    expected_rows = [
        (model.config.id2label[label], round(score, 3))
        for score, label in zip(found["scores"].tolist(), found["labels"].tolist(), strict=True)
    ]
    assert [(name, float(score)) for name, score in rows][: len(expected_rows)] == expected_rows[: len(rows)]
    assert rows


def test_look_inside(page: Page, folder: Path) -> None:
    """The pictures of `draw_features`, and of `draw_attention` at the point that was clicked, block and head too."""
    model, processor, photo = opened(folder, "classifier", "AutoModelForImageClassification")
    send(page, folder / "photo.png")
    page.get_by_role("tab", name="Feature maps").click()
    features = page.locator("#features img")
    expect(features).to_be_visible()
    assert np.array_equal(picture_of(page, features), hf_pvt.draw_features(model, photo, processor))
    page.get_by_role("tab", name="Attention").click()
    photograph = page.locator("#clicked img")
    # As the page reads it: in pixels of the photograph, whatever the layout does afterwards.
    photograph.evaluate(
        """image => image.addEventListener("click", event => {
            const { left, top, width } = image.getBoundingClientRect();
            const scale = image.naturalWidth / width;
            window.clicked = [event.clientX - left, event.clientY - top].map(side => side * scale);
        }, true)"""
    )
    # The click does not wait for the stage's blocks.
    page.get_by_role("radio", name="3").check()
    photograph.click(position={"x": 50, "y": 80})
    x, y = page.evaluate("window.clicked")
    points = [(round(x + dx), round(y + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    attention = page.locator("#attention img")

    def becomes(**choice: Any) -> bool:
        """Whether the attention of the point is shown, the last block's unless another is chosen."""
        expected = [
            np.asarray(hf_pvt.draw_attention(model, photo, point, 2, image_processor=processor, **choice))
            for point in points
        ]
        for _ in range(PATIENCE // 250):
            for image in attention.all():
                shown = np.asarray(picture_of(page, image))
                if any(np.array_equal(shown, one) for one in expected):
                    return True
            page.wait_for_timeout(250)
        return False

    assert becomes()
    page.get_by_label("Head", exact=True).click()
    page.get_by_role("option", name="2").click()
    assert becomes(head=1)
    page.get_by_label("Block", exact=True).click()
    page.get_by_role("option", name="1").click()
    assert becomes(head=1, block=0)


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
    says(page, r"There is no folder \./nowhere")
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


def test_who_is_talked_to(browser: Browser, address: str) -> None:
    """It listens on 127.0.0.1 alone, which 127.0.0.2 is not; browsers ask nobody else: the page forbids it."""
    port = int(address.split(":")[2].rstrip("/"))
    for host, reached in (("127.0.0.1", True), ("127.0.0.2", False)):
        with socket.socket() as client:
            assert (client.connect_ex((host, port)) == 0) == reached, host
    elsewhere = Outside()
    with browser.new_page() as page:
        page.goto(address)
        page.evaluate("url => fetch(url, { mode: 'no-cors' }).catch(() => null)", elsewhere.address)
    assert not elsewhere.asked
