"""Images and objects that cannot be used: a sentence that names the file and what is wrong, or skipped and listed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detection_runs import annotate, annotated_scenes, by_hand, detector, flags, launch, run
from families import MASK_RCNN, RETINANET
from script_runs import weights

from hf_pvt.training.data.decoding import BadImageError

Content = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return annotated_scenes(tmp_path_factory.mktemp("data"), 16, 12)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector(tmp_path_factory.mktemp("start") / "mask_rcnn", MASK_RCNN)


@pytest.fixture(scope="module")
def usual(data: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on data without a fault: its folder and its record."""
    output = tmp_path_factory.mktemp("usual") / "out"
    return output, run(flags(data, output, model_name_or_path=start))


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(data, tmp_path / "own"))


def first_of(content: Content, number: int) -> Content:
    """The first object of an image."""
    image_id = content["images"][number]["id"]
    return next(entry for entry in content["annotations"] if entry["image_id"] == image_id)


def missing(folder: Path, number: int) -> None:
    (folder / f"{number:04}.png").unlink()


def damaged(folder: Path, number: int) -> None:
    path = folder / f"{number:04}.png"
    path.write_bytes(path.read_bytes()[:2000])


def other_size(folder: Path, number: int) -> None:
    annotate(folder, lambda content: content["images"][number].update(width=65))


def of_object(**change: Any) -> Callable[[Path, int], None]:
    def spoil(folder: Path, number: int) -> None:
        annotate(folder, lambda content: first_of(content, number).update(change))

    return spoil


def assert_same_weights(output: Path, other: Path) -> None:
    theirs = weights(other)
    assert all(theirs[name].equal(weight) for name, weight in weights(output).items())


# What is done to an image, what is said of it, and whether it is seen in the annotations, before the first step.
BAD: dict[str, tuple[Callable[[Path, int], None], str, bool]] = {
    "missing": (missing, "cannot be read (No such file or directory)", True),
    "damaged": (damaged, "is damaged or cut off (", False),
    "another size": (other_size, "has 64x64 pixels, its annotation says 65x64", False),
    "category": (of_object(category_id=4), "has broken objects: has the category 4, expected one of the 10 ", True),
    "outside": (of_object(bbox=[70, 3, 9, 9]), "has broken objects: annotation 0 of image 10", True),
    "no box": (of_object(bbox=[3, 3, -9, 9]), "has broken objects: annotation 0 of image 10", True),
    "polygon": (of_object(segmentation=[[3, 3, 9]]), "has broken objects: annotation 0 of image 10", False),
    "encoding": (
        of_object(segmentation={"size": [32, 64], "counts": [2048]}),
        "has broken objects: annotation 0 of image 10",
        False,
    ),
}


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("missing", "validation"),
        ("damaged", "train"),
        ("another size", "validation"),
        ("category", "train"),
        ("outside", "validation"),
        ("no box", "train"),
        ("polygon", "train"),
        ("encoding", "validation"),
    ],
)
def test_what_is_bad_stops_the_run(kind: str, share: str, own: Path, start: Path, tmp_path: Path) -> None:
    spoil, reason, is_seen_first = BAD[kind]
    spoil(own / share, 2)
    with pytest.raises(BadImageError) as caught:
        run(flags(own, tmp_path / "out", model_name_or_path=start, checkpointing_steps=1))
    file = own / share / "0002.png"
    assert caught.value.file == str(file)
    assert str(caught.value).startswith(f"{file} {reason}")
    assert not (tmp_path / "out" / "model").exists()
    if is_seen_first:
        assert not (tmp_path / "out").exists()


def test_what_is_bad_is_skipped_counted_and_listed(
    own: Path, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In training and in evaluation, which is of the others alone."""
    for number, (spoil, _, _) in enumerate(BAD.values()):
        for share in ("train", "validation"):
            spoil(own / share, number)
    values = {"on_bad_image": "skip", "max_steps": None, "num_train_epochs": 1}
    record = run(flags(own, tmp_path / "out", model_name_or_path=start, **values))
    found = {Path(file).relative_to(own).as_posix(): reason for file, reason in record["bad_images"].items()}
    assert found.keys() == {f"{s}/{number:04}.png" for s in ("train", "validation") for number in range(len(BAD))}
    for number, (_, reason, _) in enumerate(BAD.values()):
        assert found[f"validation/{number:04}.png"].startswith(reason)
    assert record["metrics"]["examples"] == 12 - len(BAD)
    assert "16 bad images were skipped" in caplog.text
    assert "4 of 16 training images have objects that cannot be used, and are skipped; the first, " in caplog.text

    def sound(content: Content) -> None:
        content["images"] = content["images"][len(BAD) :]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]

    annotate(own / "validation", sound)
    for name, value in by_hand(tmp_path / "out" / "model", own / "validation").items():
        assert record["metrics"][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.processes
def test_an_error_is_one_line(own: Path, start: Path, tmp_path: Path) -> None:
    """Of a worker process, too; not behind the bar that shows the steps."""
    missing(own / "train", 2)
    process = launch(flags(own, tmp_path / "out", model_name_or_path=start, dataloader_num_workers=1))
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert f"error: {own}/train/0002.png cannot be read (No such file or directory)." in process.stderr.splitlines()


def test_objects_without_area_are_left_out(
    own: Path, start: Path, usual: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those below a pixel, too, and it is said; the same weights as without them."""

    def with_flat(content: Content) -> None:
        for entry in content["annotations"][:5]:
            width = entry["id"] % 2 / 2
            flat = {"bbox": [*entry["bbox"][:2], width, 9], "area": 9 * width}
            content["annotations"].append(entry | flat | {"id": 1000 + entry["id"]})

    annotate(own / "train", with_flat)
    run(flags(own, tmp_path / "out", model_name_or_path=start))
    assert_same_weights(tmp_path / "out", usual[0])
    assert "training boxes are less than a pixel wide or high: left out" in caplog.text


def in_corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


FORMATS: dict[str, Callable[[list[float]], list[float]]] = {
    "xyxy": in_corners,
    "cxcywh": lambda box: [box[0] + box[2] / 2, box[1] + box[3] / 2, *box[2:]],
    "relative_xyxy": lambda box: [value / 64 for value in in_corners(box)],
}


def reformat(root: Path, box_format: str) -> None:
    def change(content: Content) -> None:
        for entry in content["annotations"]:
            entry["bbox"] = FORMATS[box_format](entry["bbox"])

    for share in ("train", "validation"):
        annotate(root / share, change)


def test_corners_are_no_sizes(own: Path, start: Path, tmp_path: Path) -> None:
    """Boxes that reach over their image as x, y, width, height, and fit as corners."""
    reformat(own, "xyxy")
    hint = r"^of the training boxes \d+ end outside their image as x, y, width, height, .*; give --bbox_format xyxy\.$"
    with pytest.raises(ValueError, match=hint):
        run(flags(own, tmp_path / "out", model_name_or_path=start))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("box_format", ["cxcywh", "relative_xyxy"])
def test_formats_of_boxes(box_format: str, own: Path, start: Path, usual: tuple[Path, Any], tmp_path: Path) -> None:
    """The same model and the same scores, whatever the data's format."""
    reformat(own, box_format)
    given = run(flags(own, tmp_path / "out", model_name_or_path=start, bbox_format=box_format))
    assert given["metrics"] == usual[1]["metrics"]
    assert_same_weights(tmp_path / "out", usual[0])


NOT_COCO: list[tuple[Callable[[Content], Any], str]] = [
    (lambda c: c["annotations"][0].update(image_id=7), "has an annotation of image 7, which is none"),
    (lambda c: c["images"].append(c["images"][0]), "has two images of one id."),
    (lambda c: c["images"][0].pop("file_name"), "has an image without file_name."),
    (lambda c: c["categories"].clear(), "has no categories."),
    (lambda c: c["categories"][0].update(name="digit 1"), "has two categories of one id or name."),
    (lambda c: c.pop("images"), "is not COCO's: expected a dictionary with images, annotations and categories."),
    (lambda c: c["annotations"][0].pop("image_id"), "is not COCO's: an entry has no 'image_id'."),
]


def test_a_file_that_is_not_coco_s(own: Path, start: Path, tmp_path: Path) -> None:
    file = own / "train" / "annotations.json"
    sound = file.read_text()
    for change, message in NOT_COCO:
        file.write_text(sound)
        annotate(own / "train", change)
        with pytest.raises(ValueError) as caught:
            run(flags(own, tmp_path / "out", model_name_or_path=start))
        assert str(caught.value).startswith(f"{file} {message}"), (message, caught.value)


def test_categories_go_by_their_names(
    data: Path, own: Path, start: Path, usual: tuple[Path, Any], tmp_path: Path
) -> None:
    """A validation file may number them otherwise; a name that training has not is refused."""

    def renumber(content: Content) -> None:
        for entry in (*content["categories"], *content["annotations"]):
            key = "id" if "name" in entry else "category_id"
            entry[key] = 50 - entry[key]

    annotate(own / "validation", renumber)
    values = {"model_name_or_path": start, "validation_dir": own / "validation"}
    assert run(flags(data, tmp_path / "other", **values))["metrics"] == usual[1]["metrics"]
    annotate(own / "validation", lambda content: content["categories"][3].update(name="letter"))
    with pytest.raises(ValueError, match=r"annotations\.json has the category 'letter', expected those of the labels"):
        run(flags(data, tmp_path / "third", **values))


def test_only_images_with_objects(own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With --keep_empty False, as the published recipes have it, an image without objects is none to train on."""
    content = json.loads((own / "train" / "annotations.json").read_text())
    empty = {image["id"] for image in content["images"][:8]}
    annotate(
        own / "train",
        lambda c: c.update(annotations=[e for e in c["annotations"] if e["image_id"] not in empty]),
    )
    for number in range(8):
        missing(own / "train", number)  # nobody looks at them
    start = detector(tmp_path / "start", RETINANET)
    record = run(
        flags(own, tmp_path / "out", model_name_or_path=start, keep_empty=False, max_steps=None, num_train_epochs=1)
    )
    assert (record["steps"], record["bad_images"]) == (2, {})
