"""The static page of examples/web in Chromium: what it says and paints is what PyTorch says and hf_pvt draws."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from chromium import chromium
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from sklearn.datasets import load_sample_image
from web_site import FLOWERS, PATIENCE, SCENE, build, choose, give, message, save, served, tiny_models

import hf_pvt

pytestmark = pytest.mark.browser

MODELS = tiny_models()
ANYBODY = {"Access-Control-Allow-Origin": "*"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of saved models with ONNX files."""
    folder = tmp_path_factory.mktemp("saved")
    for name, (model, processor) in MODELS.items():
        save(model, processor, folder / name, fp16=name == "flowers", int8=name == "flowers")
    return folder


@pytest.fixture(scope="module")
def site(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built."""
    out = tmp_path_factory.mktemp("site") / "dist"
    built = build(*sorted(saved.iterdir()), out=out)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[Path], Page]]:
    """Opens a built page; in the end nothing may have been asked of another host."""
    requests: list[str] = []
    with ExitStack() as stack:

        def open_at(folder: Path) -> Page:
            page = stack.enter_context(browser.new_page())
            page.on("request", lambda request: requests.append(request.url))
            page.goto(stack.enter_context(served(folder)))
            return page

        yield open_at
    assert requests
    assert not [url for url in requests if not re.match(r"(blob:)?http://127\.0\.0\.1:|data:", url)]


@pytest.fixture
def copied_site(site: Path, tmp_path: Path) -> Path:
    """The page with models that a test may change."""
    folder = shutil.copytree(site, tmp_path / "site", copy_function=os.link, ignore=shutil.ignore_patterns("models"))
    shutil.copytree(site / "models", folder / "models")
    return folder


@pytest.fixture
def page(open_page: Callable[[Path], Page], site: Path) -> Page:
    return open_page(site)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photographs") / "china.png"
    Image.fromarray(load_sample_image("china.jpg")).save(file)
    return file


@torch.inference_mode()
def outputs_of(model: str, file: Path) -> Any:
    """PyTorch's answer to pixels that Pillow has resized: torchvision's bicubic ones are a level apart."""
    network, processor = MODELS[model]
    settings = processor.to_dict()
    settings.pop("image_processor_type")
    if model == "flowers":
        processor = hf_pvt.images.image_processing_pvt.PvtImageProcessorPil(**settings)
    return network(**processor(Image.open(file), return_tensors="pt"))


def scores_of(page: Page) -> dict[str, float]:
    """The classifier's labels with the lengths of their bars."""
    script = (
        "lines => lines.map((line) => [line.querySelector('.name').textContent, line.querySelector('meter').value])"
    )
    return dict(page.locator("#labels li").evaluate_all(script))


def pixels_of(page: Page) -> np.ndarray:
    """The painted photograph, (H, W, 3)."""
    url = page.evaluate("document.getElementById('picture').toDataURL()")
    return image_of(url)


def image_of(data_url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))).convert("RGB"))


def data_url(file: Path) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(file.read_bytes()).decode()}"


def test_classifier(page: Page, photograph: Path) -> None:
    """The five likeliest labels and their scores; 16 and 8 bits where a model has them, or back to 32."""
    choose(page, "flowers")
    give(page, photograph)
    scores, labels = outputs_of("flowers", photograph).logits[0].softmax(0).sort(descending=True)
    exact = scores_of(page)
    assert list(exact) == [FLOWERS[int(label)] for label in labels]
    assert list(exact.values()) == pytest.approx(scores.tolist(), abs=1e-5)
    assert page.locator("#labels .share").first.inner_text() == f"{100 * scores[0]:.1f} %"
    assert np.array_equal(pixels_of(page), load_sample_image("china.jpg"))
    for precision, difference in {"fp16": 1e-3, "q8": 0.1}.items():
        page.locator("#precision").select_option(precision)
        expect(page.locator("#result")).to_be_visible(timeout=PATIENCE)
        changed = scores_of(page)
        assert changed != exact, precision
        assert changed == pytest.approx(exact, abs=difference), precision
    page.locator("#served").select_option("scenes")
    assert page.locator("#precision").input_value() == "fp32"
    disabled = page.locator("#precision option:disabled")
    assert disabled.evaluate_all("all => all.map(({ value }) => value)") == ["fp16", "q8"]


def test_segmenter(page: Page, photograph: Path) -> None:
    """The overlay is `draw_segmentation`'s; a click on a label of the legend shows it alone, the pointer names it."""
    choose(page, "scenes")
    give(page, photograph)
    photo = load_sample_image("china.jpg")
    label_map = label_map_of(photograph)
    drawn = np.asarray(hf_pvt.draw_segmentation(photo, label_map, SCENE))[: photo.shape[0], : photo.shape[1]]
    labels, areas = np.unique(label_map, return_counts=True)
    by_area = labels[np.argsort(-areas)]
    assert len(by_area) > 2

    painted = pixels_of(page).astype(int)
    assert (np.abs(painted - drawn) > 1).any(axis=2).mean() < 1e-3
    assert page.locator("#labels .name").all_inner_texts() == [SCENE[label] for label in by_area]
    shares = [float(text.removesuffix(" %")) for text in page.locator("#labels .share").all_inner_texts()]
    assert shares == pytest.approx(sorted(100 * areas / label_map.size, reverse=True), abs=0.11)

    label = next(label for label in by_area if SCENE[label] != "background")
    button = page.locator("#labels button", has_text=SCENE[label])
    button.click()
    alone = np.where((label_map == label)[..., None], drawn, photo)
    assert (np.abs(pixels_of(page).astype(int) - alone) > 1).any(axis=2).mean() < 1e-3
    button.click()
    assert np.array_equal(pixels_of(page), painted)
    assert page.locator("#labels button", has_text="background").is_disabled()

    page.locator("#opacity").fill("0")
    assert (pixels_of(page) == photo).mean() > 0.9
    assert (pixels_of(page) != photo).any()  # the outlines stay

    picture, (height, width) = page.locator("#picture"), label_map.shape
    scale = width / picture.evaluate("canvas => canvas.clientWidth")
    for x, y in ((width // 5, height // 2), (width // 2, height // 5), (4 * width // 5, 4 * height // 5)):
        picture.hover(position={"x": x / scale, "y": y / scale})
        near = label_map[y - 2 : y + 3, x - 2 : x + 3]
        assert page.locator("#under").inner_text() in {SCENE[label] for label in near.flatten()}
    page.locator("h1").hover()
    assert page.locator("#under").inner_text() == ""


def test_independent_labels(open_page: Callable[[Path], Page], copied_site: Path, photograph: Path) -> None:
    """Of a model of several labels per image: each has a probability of its own."""
    changed("config.json", problem_type="multi_label_classification")(copied_site / "models" / "flowers")
    page = open_page(copied_site)
    give(page, photograph)
    scores, labels = outputs_of("flowers", photograph).logits[0].sigmoid().sort(descending=True)
    assert list(scores_of(page)) == [FLOWERS[int(label)] for label in labels]
    assert list(scores_of(page).values()) == pytest.approx(scores.tolist(), abs=1e-5)


def label_map_of(file: Path) -> np.ndarray:
    """The labels that PyTorch gives the photograph's pixels."""
    with Image.open(file) as photo:
        size = (photo.height, photo.width)
    return MODELS["scenes"][1].post_process_semantic_segmentation(outputs_of("scenes", file), [size])[0].numpy()


def test_dropped_or_pasted(page: Page, photograph: Path) -> None:
    """Anywhere on the page; a photograph stays when another model is chosen."""
    choose(page, "flowers")
    for event in (
        'new DragEvent("drop", { dataTransfer: transfer, bubbles: true })',
        'new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })',
    ):
        page.evaluate(
            f"""async (url) => {{
                const transfer = new DataTransfer();
                transfer.items.add(new File([await (await fetch(url)).blob()], "given.png"));
                document.getElementById("labels").replaceChildren();
                document.body.dispatchEvent({event});
            }}""",
            data_url(photograph),
        )
        expect(page.locator("#labels li")).to_have_count(5, timeout=PATIENCE)
    page.locator("#served").select_option("scenes")
    expect(page.locator("#labels button").first).to_be_visible(timeout=PATIENCE)


def test_progress(page: Page) -> None:
    """The bar rises to the end and goes."""
    choose(page, "flowers")
    page.evaluate(
        """() => {
            window.seen = [];
            const bar = document.getElementById("progress");
            new MutationObserver(() => bar.hidden || seen.push(bar.value)).observe(bar, { attributes: true });
        }"""
    )
    choose(page, "scenes")
    seen = page.evaluate("seen")
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 1}) > 1
    assert seen[-1] == 1
    assert page.locator("#progress").is_hidden()


def test_model_of_the_hub(browser: Browser, site: Path, saved: Path, photograph: Path) -> None:
    """An id that is entered is asked of the Hub, and of nobody else: all files of one commit. Here it is a folder."""
    asked = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        repository, _, path = route.request.url.partition("/resolve/0123abcd/")
        if repository == "https://huggingface.co/api/models/org/flowers":
            route.fulfill(json={"sha": "0123abcd"}, headers=ANYBODY)
        elif repository == "https://huggingface.co/org/flowers":
            route.fulfill(path=saved / "flowers" / path, headers=ANYBODY)
        else:
            route.fulfill(status=404, headers=ANYBODY)

    with served(site) as address, browser.new_context() as context:
        context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), answer)
        page = context.new_page()
        page.goto(address)
        page.locator("#served").select_option("of the Hub …")
        assert asked == []
        page.locator("#id").fill("org/trees")
        page.locator("#hub button").click()
        assert message(page) == "huggingface.co has no public model org/trees; enter an id such as organisation/model."
        page.locator("#id").fill("org/flowers")
        page.locator("#hub button").click()
        give(page, photograph)
        expect(page.locator("#labels li")).to_have_count(5)
    files = ("config.json", "preprocessor_config.json", "onnx/model.onnx")
    assert set(asked[2:]) == {f"https://huggingface.co/org/flowers/resolve/0123abcd/{file}" for file in files}


def test_space(browser: Browser, site: Path, photograph: Path) -> None:
    """The page is a static Space, and works behind the headers that it asks the Hub for."""
    _, front_matter, _ = (site / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front_matter)
    assert settings["sdk"] == "static"
    assert (site / settings["app_file"]).exists()
    with served(site, settings["custom_headers"]) as address, browser.new_page() as page:
        page.goto(address)
        assert page.evaluate("crossOriginIsolated")
        choose(page, "flowers")
        give(page, photograph)


def test_model_that_was_replaced(open_page: Callable[[Path], Page], copied_site: Path, photograph: Path) -> None:
    """Under its name: browsers keep old files as long as they think fit, and would name scores by old labels."""
    config = copied_site / "models" / "flowers" / "config.json"
    os.utime(config, (0, 0))
    page = open_page(copied_site)
    give(page, photograph)
    changed("config.json", id2label={label: f"new {name}" for label, name in FLOWERS.items()})(config.parent)
    page.reload()
    give(page, photograph)
    assert page.locator("#labels .name").first.inner_text().startswith("new ")


def test_files_that_are_no_photographs(page: Page, photograph: Path, tmp_path: Path) -> None:
    """One sentence on the page, and the next photograph works."""
    choose(page, "flowers")
    broken, huge = tmp_path / "broken.jpg", tmp_path / "huge.png"
    broken.write_text("no image")
    Image.new("1", (9000, 8000)).save(huge)
    for file, expected in {
        broken: "broken.jpg cannot be read as an image; give a JPEG, PNG",
        huge: "huge.png has 9000x8000 pixels, this page takes 64 million; make it smaller first.",
    }.items():
        page.locator("#file").set_input_files(file)
        expect(page.locator("#failed")).to_contain_text(expected, timeout=PATIENCE)
        assert page.locator("#result").is_hidden()
    give(page, photograph)
    assert page.locator("#failed").is_hidden()


def cut_file(model: Path) -> None:
    graph = model / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])


def without_numbers(model: Path) -> None:
    """A classifier whose logits are NaN."""
    file = model / "onnx" / "model.onnx"
    graph = onnx.load(file)
    (bias,) = (weight for weight in graph.graph.initializer if weight.name.endswith("classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, np.nan, dtype=np.float32), bias.name))
    onnx.save(graph, file)


def changed(file: str, **fields: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        settings = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(settings | fields))

    return change


PREPROCESSOR = "preprocessor_config.json"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no-config": (lambda model: (model / "config.json").unlink(), "models/{name}/config.json is not there"),
    "no-json": (lambda model: (model / "config.json").write_text("{"), "models/{name}/config.json cannot be opened ("),
    "no-processor": (lambda model: (model / PREPROCESSOR).unlink(), f"models/{{name}}/{PREPROCESSOR} is not there"),
    "cut": (cut_file, "models/{name}/onnx/model.onnx cannot be opened ("),
    "backbone": (
        changed("config.json", architectures=["PvtV2Backbone"]),
        "{name} is PvtV2Backbone; this page shows classifiers and segmenters.",
    ),
    "other-processor": (
        changed(PREPROCESSOR, image_processor_type="ViTImageProcessor"),
        "it is a ViTImageProcessor, expected PvtImageProcessor",
    ),
    "unknown-step": (changed(PREPROCESSOR, do_pad=True), "do_pad is set, which this page does not do"),
    "unknown-filter": (changed(PREPROCESSOR, resample=5), "resample is 5, expected 1,2,3"),
    "other-channels": (
        changed(PREPROCESSOR, image_mean=[0.5] * 4, image_std=[0.5] * 4),
        "image_mean and image_std have not 3 numbers",
    ),
    "unknown-size": (changed(PREPROCESSOR, size={"max_height": 9, "max_width": 9}), 'size is {{"max_height":9'),
    "large-crop": (
        changed(PREPROCESSOR, crop_size={"height": 400, "width": 400}),
        "crop_size 400x400 is larger than the resized image of 163x109 pixels",
    ),
    "no-numbers": (
        without_numbers,
        "{name} answers with scores that are no numbers on wasm; try another precision.",
    ),
    "other-labels": (
        changed("config.json", id2label={"0": "rose"}),
        "{name} answers with logits of shape 1x5 for the 1 labels of its config.json; export it again.",
    ),
}


def test_broken_models(open_page: Callable[[Path], Page], copied_site: Path, photograph: Path) -> None:
    """One sentence on the page each, and another model works."""
    models = copied_site / "models"
    served_models = json.loads((models / "models.json").read_text())
    for name, (damage, _) in BROKEN.items():
        damage(shutil.copytree(models / "flowers", models / name))
        served_models.append({"name": name, "precisions": ["fp32"]})
    (models / "models.json").write_text(json.dumps(served_models))
    page = open_page(copied_site)
    give(page, photograph)
    for name, (_, expected) in BROKEN.items():
        page.locator("#served").select_option(name)
        expect(page.locator("#failed")).to_contain_text(expected.format(name=name), timeout=PATIENCE)
        page.locator("#file").set_input_files(photograph)  # once more, when the model is known to be broken
        expect(page.locator("#failed")).to_contain_text(expected.format(name=name), timeout=PATIENCE)
        assert page.locator("#result").is_hidden(), name
    page.locator("#served").select_option("scenes")
    expect(page.locator("#result")).to_be_visible(timeout=PATIENCE)
    assert page.locator("#failed").is_hidden()


def test_builds_that_are_refused(saved: Path, tmp_path: Path) -> None:
    """A model without a file, two models of one name, another folder: what was there stays."""
    out = tmp_path / "dist"
    assert build(out=out).returncode == 0
    for lacking, expected in (
        ("onnx", "has no onnx/model.onnx; run conversion/export_onnx.py"),
        ("config.json", "has no config.json; save model and processor"),
    ):
        model = tmp_path / f"without-{lacking}"
        shutil.copytree(saved / "flowers", model, ignore=shutil.ignore_patterns(lacking))
        refuses(expected, model, out=out)
        assert json.loads((out / "models" / "models.json").read_text()) == []
    refuses(
        "two models are named flowers; rename one of the folders.",
        saved / "flowers",
        saved / "scenes" / ".." / "flowers",
        out=tmp_path / "new",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refuses("is no page that this script made; give another --out.", out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dist",
        "mine",
        "without-config.json",
        "without-onnx",
    ]


def refuses(expected: str, *models: Path, out: Path) -> None:
    built = build(*models, out=out)
    assert built.returncode == 1 and expected in built.stderr, expected
