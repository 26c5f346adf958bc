"""What masks mean: pixel values and names, the count before training, and scores over fewer labels than there are."""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from refusals import refusal
from segmentation_runs import configuration, flags, run, write_png
from transformers import AutoConfig

from hf_pvt.training.arguments import DataArguments
from hf_pvt.training.data import mask_checks as mask_census
from hf_pvt.training.data.decoding import BadImageError
from hf_pvt.training.data.label_values import LabelValues, in_words, open_label_values
from hf_pvt.training.data.mask_checks import Census, check_masks
from hf_pvt.training.data.masks import Decoder, Example, Pairs, mask_pixels, open_label_maps

BINARY = {"0": "background", "255": "lesion"}


def names_file(folder: Path, content: Any) -> str:
    path = folder / "labels.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def label_values(folder: Path, content: Any, **settings: Any) -> LabelValues:
    return open_label_values(DataArguments(), names_file(folder, content), **settings)


# Names


@pytest.mark.parametrize(
    ("content", "pixels", "names", "labels"),
    [
        (["a", "b"], [0, 1, 255], ["a", "b"], [0, 1, 255]),
        ({"1": "b", "0": "a"}, [0, 1, 255], ["a", "b"], [0, 1, 255]),
        (BINARY, [0, 255], ["background", "lesion"], [0, 1]),
        ({"10": "b", "9": "a"}, [9, 10, 255], ["a", "b"], [0, 1, 255]),
        ({"0": None, "7": "a", "300": "b", "9": None}, [0, 7, 300, 9, 255], ["a", "b"], [255, 0, 1, 255, 255]),
    ],
    ids=["list", "order", "binary", "numeric order", "null"],
)
def test_pixel_values_have_names(
    content: Any, pixels: list[int], names: list[str], labels: list[int], tmp_path: Path
) -> None:
    """Labels are numbered in the order of their values; 255 is ignored where it is not named, and what is null."""
    values = label_values(tmp_path, content)
    assert values.names == names
    assert values.to_labels(np.array([pixels])).tolist() == [labels]


def test_reduced_labels(tmp_path: Path) -> None:
    """As ADE20K: 0 is no label, 1 to the number of labels become 0 and up, 255 stays."""
    values = label_values(tmp_path, ["a", "b", "c"], reduce_labels=True)
    assert values.to_labels(np.array([[0, 1, 2], [3, 255, 1]])).tolist() == [[255, 0, 1], [2, 255, 0]]
    ade20k = open_label_values(DataArguments(), "ade20k", reduce_labels=True)
    assert (ade20k.names[0], len(ade20k.names), ade20k.values) == ("wall", 150, list(range(1, 151)))
    for content in (BINARY, {"0": None, "1": "a"}, [f"label {number}" for number in range(255)]):
        with pytest.raises(ValueError, match="--reduce_labels wants names of the labels from 0 to at most 253"):
            label_values(tmp_path, content, reduce_labels=True)


def test_more_than_255_labels(tmp_path: Path) -> None:
    """Then 255 is a label like any other, and what has none becomes -100."""
    names = [f"label {number}" for number in range(300)]
    values = label_values(tmp_path, names)
    assert values.to_labels(np.array([[254, 255, 256, 299]])).tolist() == [[254, 255, 256, 299]]
    assert values.ignored == -100
    named = dict(enumerate(names)) | {65535: None}
    assert label_values(tmp_path, named).to_labels(np.array([[255, 65535]])).tolist() == [[255, -100]]
    assert label_values(tmp_path, names[:255]).to_labels(np.array([[254, 255]])).tolist() == [[254, 255]]
    assert label_values(tmp_path, names[:256]).to_labels(np.array([[254, 255]])).tolist() == [[254, 255]]
    assert [label_values(tmp_path, names[:count]).ignored for count in (255, 256)] == [255, -100]


def test_a_value_without_a_name(tmp_path: Path) -> None:
    cases: list[tuple[Any, int, str]] = [
        (["a", "b", "c"], 3, "0 to 2, or 255 for none"),
        (BINARY, 128, "0 and 255"),
        ({"0": "a", "1": "b"}, -1, "0 and 1, or 255 for none"),
        ({"0": None, "2": "b", "5": "c"}, 70_000, "2 and 5, or 0 and 255 for none"),
        ({str(number): "a" for number in range(0, 100, 5)}, 4, "20 values from 0 to 95, or 255 for none"),
    ]
    for content, value, expected in cases:
        values, mask = label_values(tmp_path, content), np.array([[5 if value == 4 else 0, value]])
        said = refusal(content, values.to_labels, mask)
        assert said == f"holds the value {value}, expected {expected}", content


def test_numbers_in_words() -> None:
    assert [in_words(numbers) for numbers in ([4], [0, 255], [3, 1, 9], range(3), range(0, 40, 2))] == [
        *("4", "0 and 255", "1, 3 and 9", "0 to 2", "20 values from 0 to 38")
    ]


def test_what_holds_no_names(tmp_path: Path) -> None:
    contents = ["{", "{}", "[]", "3", '{"background": 0}', '{"-1": "a", "0": "b"}', '{"70000": "a"}', '{"0": null}']
    for content in (*contents, '{"0": 1}', '{"1.5": "a"}', '{"0": "a", "00": "b"}'):
        assert refusal(content, label_values, tmp_path, content) == (
            f'{tmp_path}/labels.json holds no names of labels, expected a list or {{"0": name, ...}} of pixel values '
            "from 0 to 65535, with null for one that is no label."
        ), content


def test_no_file_of_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file gone.json of labels"):
        open_label_values(DataArguments(train_dir=str(tmp_path)), "gone.json")
    names_file(tmp_path, ["a", "b"])
    assert open_label_values(DataArguments(train_dir=str(tmp_path)), None).names == ["a", "b"]


# Kinds of files


def png(mask: Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    mask.save(file, "PNG", **settings)
    return file.getvalue()


GREY = np.array([[0, 255, 0], [255, 255, 7]], dtype=np.uint8)


def test_kinds_of_masks() -> None:
    """Grey saved as colours is grey, of a palette image the index counts, one bit is 0 and 1."""
    masks = {mode: Image.fromarray(GREY).convert(mode) for mode in ("L", "LA", "RGB", "RGBA", "1")}
    masks |= {"P": Image.fromarray(GREY), "I;16": Image.fromarray(GREY.astype(np.uint16))}
    masks["P"].putpalette([9, 8, 7] * 256)
    for mode, mask in masks.items():
        expected = GREY > 127 if mode == "1" else GREY
        pixels, name = mask_pixels(Example(b"", "photo.png", png(mask), "mask.png"))
        assert name == "mask.png" and pixels.dtype == np.int64 and np.array_equal(pixels, expected), mode


def test_colours_are_no_labels() -> None:
    for pixel in ((1, 0, 0, 255), (0, 0, 0, 0)):
        mask = Image.fromarray(GREY).convert("RGBA")
        mask.putpixel((0, 0), pixel)
        with pytest.raises(BadImageError, match=r"mask\.png is no mask: .*save colour-coded masks as single-channel"):
            mask_pixels(Example(b"", "photo.png", png(mask), "mask.png"))


# The count before training


def scenes(root: Path, values: Sequence[Sequence[int]], names: Any, suffix: str = ".png") -> Path:
    """One image for each entry, whose mask holds its values as stripes; the image is as bright as the value's place."""
    for number, own in enumerate(values):
        mask = np.repeat(np.resize(np.array(own, dtype=np.uint8), 8), 8)[None].repeat(48, axis=0)  # (48, 64)
        for folder, pixels in (("images", np.repeat((mask % 5 * 50)[..., None], 3, 2)), ("masks", mask)):
            write_png(root / folder / f"{number}{'.png' if folder == 'images' else suffix}", pixels)
    if names is not None:
        names_file(root, names)
    return root


def pairs(root: Path) -> Any:
    return open_label_maps(DataArguments(train_dir=str(root), on_bad_image="skip"), None, 0)[0]


def check(root: Path, validation: Path | None = None, on_bad_image: str = "error") -> None:
    labels = open_label_values(DataArguments(train_dir=str(root)), None)
    check_masks(Accelerator(cpu=True), labels, pairs(root), validation and pairs(validation), on_bad_image, 64)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this process's count said."""
    own = [record.message for record in caplog.records if record.name == mask_census.__name__]
    return [message.removeprefix("[RANK 0] ") for message in own]


ADVICE = (
    "say in labels.json beside the data, or in a file for --labels, what each value means, such as {}, with null for "
    "one that is no label."
)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (
            [[0, 255], [0]],
            ["background", "lesion"],
            "the training masks hold the pixel values 0 and 255, of which 255 is no label: 'background' is the only "
            f"label, and training wants at least two; {ADVICE.format(json.dumps(BINARY))}",
        ),
        (
            [[0, 1], [0, 128], [64, 0]],
            ["a", "b"],
            "the training masks hold the pixel values 0, 1, 64 and 128, and 64 and 128 have no name (first in "
            f"{{root}}/masks/1.png); {ADVICE.format(json.dumps(BINARY))}",
        ),
        (
            [[0], [0, 7]],
            ["background", "lesion"],
            "the training masks hold the pixel values 0 and 7, and 7 has no name (first in {root}/masks/1.png); "
            + ADVICE.format('{"0": "background", "7": "lesion"}'),
        ),
        (
            [[255]],
            ["a", "b"],
            "the training masks hold the pixel value 255, of which 255 is no label: there is no label, and training "
            f"wants at least two; {ADVICE.format(json.dumps(BINARY))}",
        ),
        (
            [[0, 1]],
            {"1": "only", "0": None},
            "the training masks hold the pixel values 0 and 1, of which 0 is no label: 'only' is the only label, and "
            f"training wants at least two; {ADVICE.format(json.dumps(BINARY))}",
        ),
        (
            [[0], [3, 4, 9]],
            None,
            "the training masks hold the pixel values 0, 3, 4 and 9, and nothing names them; "
            + ADVICE.format(json.dumps(BINARY)),
        ),
    ],
    ids=["0 and 255", "strangers", "as many", "none", "one", "nameless"],
)
def test_masks_that_are_refused(values: Any, names: Any, message: str, tmp_path: Path) -> None:
    """With what was found, and how to go on."""
    with pytest.raises(ValueError) as caught:
        check(scenes(tmp_path, values, names))
    assert str(caught.value) == message.replace("{root}", str(tmp_path))


def test_a_jpeg_changes_values(tmp_path: Path) -> None:
    root = scenes(tmp_path, [[0, 255]], BINARY)
    (root / "masks" / "0.png").unlink()
    write_png(root / "masks" / "0.jpg", np.random.default_rng(0).integers(0, 2, (48, 64), dtype=np.uint8) * 255)
    with pytest.raises(ValueError, match=r"0\.jpg\); JPEG changes values, save masks as PNG; say in labels"):
        check(root)


def test_the_validation_share_is_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value without a name and a file that is no image are errors there, too; one label is a warning."""
    training = scenes(tmp_path / "training", [[0, 1, 2]], ["a", "b", "c", "d"])
    stranger = scenes(tmp_path / "stranger", [[0, 1], [9, 1]], None)
    with pytest.raises(ValueError, match=r"the validation masks hold the pixel values 0, 1 and 9, and 9 has no name"):
        check(training, stranger)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check(training, scenes(tmp_path / "few", [[1], [1]], None))
    assert messages(caplog) == [
        "none of the 1 training masks looked at holds d; they hold the pixel values 0 to 2",
        "none of the 2 validation masks looked at holds a, c; they hold the pixel value 1",
    ]
    (tmp_path / "few" / "masks" / "1.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"few/masks/1\.png is empty"):
        check(training, tmp_path / "few")
    check(training, tmp_path / "few", on_bad_image="skip")


def test_skipped_masks_are_left_to_their_turn(tmp_path: Path) -> None:
    """But what remains has to be two labels."""
    check(scenes(tmp_path / "1", [[0, 1], [9]], ["a", "b"]), on_bad_image="skip")
    with pytest.raises(ValueError, match="'a' is the only label"):
        check(scenes(tmp_path / "2", [[0], [255]], ["a", "b"]), on_bad_image="skip")
    (tmp_path / "1" / "masks" / "0.png").write_bytes(b"")
    (tmp_path / "1" / "masks" / "1.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"masks/0\.png is empty"):  # all are
        check(tmp_path / "1", on_bad_image="skip")


def test_small_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What enlarging them costs is said; the crop is as large as the shorter side, unless it is chosen."""
    root = scenes(tmp_path / "data", [[0, 1]] * 4, ["a", "b"])  # 64x48
    values = {"from_scratch": configuration(tmp_path), "crop_size": None, "max_steps": 1}
    for side, warned in ((96, True), (64, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            used = run(flags(root, tmp_path / str(side), shorter_side=side, **values))["arguments"]
        assert used["crop_size"] == side
        warning = (
            f"images of at most 48 pixels on their shorter side are enlarged to {side}; --shorter_side 48 computes"
        )
        assert [message for message in messages(caplog) if "enlarged" in message] == [
            f"{warning} 4 times less"
        ] * warned


def test_of_many_masks_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At equal distances, the first and the last among them; how many is said."""
    root = scenes(tmp_path, [[0, 1], [0, 9], [0], [9], [0, 2]], ["a", "b", "c"])
    monkeypatch.setattr(mask_census, "MOST_MASKS", 3)
    with caplog.at_level(logging.INFO):
        check(root)
    assert messages(caplog)[0] == "3 of the 5 training masks are looked at, the others in their turn"


def test_a_stream_is_looked_at_in_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its first masks: a value without a name is refused, one label only is a warning."""
    root = scenes(tmp_path, [[0, 255], [0]], ["background", "lesion"])
    columns: dict[str, list[Any]] = {"image": [], "mask": []}
    for example in Pairs(pairs(root)):
        for name, path in (("image", example.image), ("mask", example.mask)):
            columns[name].append({"bytes": Path(str(path)).read_bytes(), "path": None})
    pq.write_table(pa.table(columns), tmp_path / "scenes.parquet")
    data = DataArguments(train_files=[str(tmp_path / "scenes.parquet")], streaming=True)
    stream, _ = open_label_maps(data, None, 0)
    labels = open_label_values(data, str(root / "labels.json"))
    with caplog.at_level(logging.INFO):
        check_masks(Accelerator(cpu=True), labels, stream, None, "error", 64)
    assert messages(caplog) == [
        "of the stream's training masks the first 100 are looked at, the others in their turn",
        "none of the 2 training masks looked at holds lesion; they hold the pixel values 0 and 255, of which 255 is no "
        "label",
    ]
    strange = LabelValues(["a", "b"], [0, 1], frozenset())
    with pytest.raises(ValueError, match="255 has no name"):
        check_masks(Accelerator(cpu=True), strange, stream, None, "error", 64)


# Runs


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    """Refused before the first step where 255 has no name; with one they are two labels."""
    root = scenes(tmp_path / "data", [[0, 255], [0, 0, 255], [255, 0, 0], [0, 255, 255]] * 3, ["background", "lesion"])
    start = configuration(tmp_path, semantic_loss_ignore_index=1)  # what the model ignored elsewhere
    values = {"from_scratch": start, "train_val_split": 0.25, "max_steps": 2}
    with pytest.raises(ValueError, match="of which 255 is no label: 'background' is the only label"):
        run(flags(root, tmp_path / "refused", **values))
    assert not (tmp_path / "refused").exists()
    names_file(root, BINARY)
    metrics = run(flags(root, tmp_path / "out", **values))["metrics"]
    assert len(metrics["per_category_iou"]) == 2 and None not in metrics["per_category_iou"]
    assert metrics["remarks"] == {}
    config = AutoConfig.from_pretrained(tmp_path / "out" / "model")
    assert (config.id2label, config.semantic_loss_ignore_index) == ({0: "background", 1: "lesion"}, 255)


def test_counts_add_up() -> None:
    """In any order: the first mask of a value is the first of all."""
    bad = BadImageError("c.png", "is empty")
    parts = [Census({0: (1, "b"), 7: (1, "b")}, {}, 2, 48), Census({0: (0, "a"), 9: (4, "e")}, {2: bad}, 3, 32)]
    whole = Census({0: (0, "a"), 7: (1, "b"), 9: (4, "e")}, {2: bad}, 5, 48)
    assert parts[0] + parts[1] == parts[1] + parts[0] == whole


def test_a_mean_over_fewer_labels_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, in results.json, in the card and its index."""
    root = scenes(tmp_path / "data", [[0, 1], [1, 0, 0]] * 4, ["sky", "wall", *(f"label {i}" for i in range(9))])
    start = configuration(tmp_path)
    with caplog.at_level(logging.INFO):
        results = run(flags(root, tmp_path / "out", from_scratch=start, train_val_split=0.25, learning_rate=0.05))
    absent = [name for name, iou in enumerate(results["metrics"]["per_category_iou"]) if iou is None]
    assert absent, "the model has learnt that these do not occur"
    remark = results["metrics"]["remarks"]["mean_iou"]
    assert results["metrics"]["remarks"]["mean_dice"] == remark
    assert remark.startswith(f"over {11 - len(absent)} of 11 labels, without label ")
    assert results["metrics"]["remarks"]["mean_accuracy"].startswith("over 2 of 11 labels, without label 0, label 1, ")
    assert results["metrics"]["remarks"]["mean_accuracy"].endswith("label 7 and 1 more")
    mean = results["metrics"]["mean_iou"]
    assert f"step 4: mean_iou {mean:.4f} ({remark}), mean_accuracy" in caplog.text
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert f"| mean_iou ({remark}) | {mean:.4f} |" in card
    assert f"name: mean_iou (over {11 - len(absent)} of 11 labels" in " ".join(card.split())


def test_300_labels(tmp_path: Path) -> None:
    """Number 255 is learnt and scored, and the saved model ignores another value."""
    names = [f"label {number}" for number in range(300)]
    root = scenes(tmp_path / "data", [[255]] * 4 + [[254, 255]] * 4, names)
    results = run(flags(root, tmp_path / "out", from_scratch=configuration(tmp_path), train_val_split=0.25))
    assert results["metrics"]["per_category_iou"][255] is not None
    assert AutoConfig.from_pretrained(tmp_path / "out" / "model").semantic_loss_ignore_index == -100
    labels = label_values(tmp_path, names)
    pixels = torch.from_numpy(Decoder(labels)(pairs(root)[0])[1])
    assert (pixels == 255).all() and labels.ignored != 255
