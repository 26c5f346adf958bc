"""Objects from COCO's JSON and from data sets with columns; what cannot be used is named, and what is odd is said."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from refusals import refusal

import hf_pvt
from hf_pvt.training.arguments import DataArguments
from hf_pvt.training.data.annotated_images import AnnotationArguments, Rows, as_objects, open_annotated
from hf_pvt.training.data.annotation_checks import check_annotations
from hf_pvt.training.data.annotations import Categories, Decoder, Example, as_xywh
from hf_pvt.training.data.coco_json import coco_images
from hf_pvt.training.data.decoding import BadImageError
from hf_pvt.training.evaluators.detection import DetectionView

WIDTH, HEIGHT = 60, 40
CATEGORIES = [{"id": 7, "name": "cell"}, {"id": 3, "name": "nucleus"}]  # not in the order of their ids
POLYGON = [[10, 10, 30, 10, 30, 25]]


def entry(bbox: list[float], category: Any = 7, image: int = 5, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "segmentation": POLYGON, **more}


def coco(folder: Path, objects: list[dict[str, Any]], /, **parts: Any) -> Path:
    """A folder of two images with the ids 5 and 4, and their JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": 5 - n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(2)]
    for row in rows:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / row["file_name"])
    numbered = [{"id": n} | annotation for n, annotation in enumerate(objects)]
    content = {"images": rows, "annotations": numbered, "categories": CATEGORIES} | parts
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_images_in_the_order_of_their_ids_labels_too(tmp_path: Path) -> None:
    """As pycocotools reads them."""
    folder = coco(tmp_path, [entry([1, 2, 3, 4], 3), entry([5, 6, 7, 8], 7), entry([9, 9, 9, 9], 7, image=4)])
    images, reference = coco_images(folder, None), COCO(folder / "annotations.json")
    assert images.categories.names == ["nucleus", "cell"] and images.categories.coco_ids == [3, 7]
    assert [example.image_id for example in images] == [4, 5] == sorted(reference.getImgIds())
    decode = Decoder(with_masks=True)
    for example in images:
        expected = reference.loadAnns(reference.getAnnIds([example.image_id]))
        _, objects = decode(example)
        assert [o["bbox"] for o in objects] == [e["bbox"] for e in expected]
        assert [images.categories.ids[o["category_id"]] for o in objects] == [e["category_id"] for e in expected]
        target = decode.target(example, objects, (HEIGHT, WIDTH))
        for mask, wanted in zip(target["masks"], expected, strict=True):
            np.testing.assert_array_equal(mask.numpy(), reference.annToMask(wanted).astype(bool))


def test_another_file_s_categories_are_known_by_name(tmp_path: Path) -> None:
    coco(tmp_path / "train", [entry([1, 2, 3, 4], 3)])
    others = [{"id": 0, "name": "cell"}, {"id": 1, "name": "nucleus"}]
    coco(tmp_path / "val", [entry([1, 2, 3, 4], 0), entry([1, 2, 3, 4], 1)], categories=others)
    data = DataArguments(train_dir=str(tmp_path / "train"), validation_dir=str(tmp_path / "val"))
    _, validation, categories = open_annotated(data, AnnotationArguments(), seed=0)
    assert categories.names == ["nucleus", "cell"]
    with pytest.raises(ValueError, match=r"has the category 9, expected one of the 2 categories: 1, 0$"):
        validation.categories.label(9)
    _, objects = Decoder(with_masks=False)(validation[1])
    assert [categories.names[o["category_id"]] for o in objects] == ["cell", "nucleus"]
    coco(tmp_path / "val", [], categories=[{"id": 0, "name": "vessel"}])
    with pytest.raises(ValueError, match=r"has the category 'vessel', expected those of the labels: nucleus, cell\."):
        open_annotated(data, AnnotationArguments(), seed=0)


def test_box_formats() -> None:
    formats: dict[Any, list[float]] = {"xywh": [6, 4, 30, 20], "xyxy": [6, 4, 36, 24], "cxcywh": [21, 14, 30, 20]}
    formats |= {"relative_xywh": [0.1, 0.1, 0.5, 0.5], "relative_xyxy": [0.1, 0.1, 0.6, 0.6]}
    formats |= {"relative_cxcywh": [0.35, 0.35, 0.5, 0.5]}
    for given, box in formats.items():
        assert as_xywh(box, given, (HEIGHT, WIDTH)) == pytest.approx([6, 4, 30, 20]), given


def rows(kind: str, category: Any = None, **columns: Any) -> datasets.Dataset:
    """Two rows of a data set of the Hub, whose objects are a list of dictionaries or a dictionary of lists."""
    category = category or datasets.ClassLabel(names=["cell", "nucleus"])
    one = {"bbox": datasets.List(datasets.Value("float32")), "category": category}
    features: dict[str, Any] = {"image": datasets.Image()}
    listed = [[{"bbox": [1.0, 2.0, 3.0, 4.0], "category": 1}, {"bbox": [5.0, 6.0, 7.0, 8.0], "category": 0}], []]
    if kind == "lists":
        features["objects"] = {name: datasets.List(value) for name, value in one.items()}
        values: Any = [{name: [o[name] for o in objects] for name in one} for objects in listed]
    else:
        features["objects"] = datasets.List(one)
        values = listed
    features |= {name: datasets.Value("int64") for name in columns}
    images = [Image.new("RGB", (WIDTH, HEIGHT), (n, 0, 0)) for n in range(2)]
    return datasets.Dataset.from_dict(
        {"image": images, "objects": values} | columns, features=datasets.Features(features)
    )


@pytest.mark.parametrize("kind", ["lists", "dictionaries"])
def test_a_data_set_with_columns(kind: str, tmp_path: Path) -> None:
    rows(kind, image_id=[17, 19]).to_parquet(tmp_path / "train.parquet")
    data = DataArguments(train_files=[str(tmp_path / "train.parquet")])
    training, validation, categories = open_annotated(data, AnnotationArguments(), seed=0)
    assert validation is None and categories.names == ["cell", "nucleus"] and categories.coco_ids is None
    assert [example.image_id for example in training] == [17, 19] and len(training[1].objects) == 0
    image, objects = Decoder(with_masks=False)(training[0])
    assert image.size == (WIDTH, HEIGHT)
    assert [(o["bbox"], o["category_id"]) for o in objects] == [([1, 2, 3, 4], 1), ([5, 6, 7, 8], 0)]


def test_a_stream_leaves_empty_images_out_where_it_shall() -> None:
    stream = rows("lists").to_iterable_dataset()
    categories = Categories(["cell", "nucleus"])
    images = Rows(stream, "objects", categories)
    assert len(list(images.rows)) == 2
    assert images.example(next(iter(stream)), 0).image_id is None  # other workers have a row 0, too
    assert len(list(Rows(stream, "objects", categories, keep_empty=False).rows)) == 1


def test_names_of_a_data_set(tmp_path: Path) -> None:
    rows("lists", datasets.Value("int64")).to_parquet(tmp_path / "train.parquet")
    data = DataArguments(train_files=[str(tmp_path / "train.parquet")])
    assert open_annotated(data, AnnotationArguments(), 0)[2].names == ["0", "1"]
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    given = AnnotationArguments(label_names=str(tmp_path / "names.txt"))
    assert open_annotated(data, given, 0)[2].names == ["a", "b", "c"]
    assert len(open_annotated(data, AnnotationArguments(label_names="coco"), 0)[2].names) == 80
    data.streaming = True
    with pytest.raises(ValueError, match=r"the stream's objects in 'objects' have no names; give them with --label"):
        open_annotated(data, AnnotationArguments(), 0)
    with pytest.raises(ValueError, match=r"there is no column 'things' of objects, only: image, objects; choose with"):
        open_annotated(data, AnnotationArguments(objects_column="things"), 0)


def test_objects_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"the columns of objects have different lengths: \[1, 2\]"):
        as_objects({"bbox": [[0, 0, 1, 1]], "category": [1, 2]})


def test_crowds_and_annotated_areas_are_kept_for_the_evaluation(tmp_path: Path) -> None:
    """Masks as COCO encodes them."""
    crowd = reference_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    runs = {"size": crowd["size"], "counts": crowd["counts"].decode()}
    objects = [entry([10, 10, 20, 15], area=99.5), entry([0, 0, 40, 40], iscrowd=1, segmentation=runs)]
    (_, example) = coco_images(coco(tmp_path, objects), None)
    sample = DetectionView(Decoder(with_masks=True), hf_pvt.detection_image_processor())(example)
    plain, crowded = sample["reference"]["annotations"]
    assert (plain["area"], crowded["iscrowd"], crowded["segmentation"]) == (99.5, 1, runs)
    polygon = reference_mask.merge(reference_mask.frPyObjects(POLYGON, HEIGHT, WIDTH))
    assert plain["segmentation"]["counts"] == polygon["counts"].decode()
    assert sample["reference"]["size"] == (HEIGHT, WIDTH) and sample["pixel_values"].shape == (3, 800, 1216)
    assert sample["pixel_mask"].sum() == 800 * 1200


BROKEN: list[tuple[Any, str]] = [
    ([1, 2, 3], r"has broken objects: .* has the box \[1.0, 2.0, 3.0\], expected x, y, width >= 0, height >= 0"),
    ([1, 2, -3, 4], r"has the box \[1.0, 2.0, -3.0, 4.0\], expected x, y"),
    ([1, 2, float("nan"), 4], r"has the box \[1.0, 2.0, nan, 4.0\], expected x, y"),
    ([70, 2, 3, 4], r"outside its image of 60x40 \(width x height\); is it another image's\?"),
    (None, r"has broken objects: one has only category_id, segmentation, expected a bbox and a category"),
]


def test_broken_boxes(tmp_path: Path) -> None:
    for number, (box, message) in enumerate(BROKEN):
        folder = coco(tmp_path / str(number), [entry(box)])
        (_, example) = coco_images(folder, None)
        with pytest.raises(BadImageError, match=rf"0\.png .*{message}") as error:
            Decoder(with_masks=True)(example)
        assert error.value.file == str(folder / "0.png")


def test_an_unknown_category(tmp_path: Path) -> None:
    (_, example) = coco_images(coco(tmp_path, [entry([1, 2, 3, 4], category=8)]), None)
    with pytest.raises(BadImageError, match=r"has the category 8, expected one of the 2 categories: 3, 7\."):
        Decoder(with_masks=False)(example)


def test_broken_masks(tmp_path: Path) -> None:
    """In training and in evaluation, in their turn: only drawing tells."""
    cases: list[tuple[Any, str]] = [
        ([[1, 2, 3, 4]], "expected x1, y1, x2, y2, ... of three points or more"),
        ({"size": [4, 6], "counts": "abc"}, r"has a run-length encoding of size \[4, 6\], its image is \[40, 60\]"),
        ({"size": [40, 60], "counts": [1, 2]}, "cannot be decoded to its image's 40x60 pixels"),
        ([[1, 2, 900, 4, 5, 6]], "with points far outside its image"),
    ]
    decode = Decoder(with_masks=True)
    for segmentation, message in cases:
        (_, example) = coco_images(coco(tmp_path, [entry([1, 2, 3, 4], segmentation=segmentation)]), None)
        _, objects = decode(example)
        with pytest.raises(BadImageError, match=message):
            decode.target(example, objects, (HEIGHT, WIDTH))
        with pytest.raises(BadImageError, match=message):
            DetectionView(decode, hf_pvt.detection_image_processor())(example)


def test_an_image_of_another_size_than_annotated(tmp_path: Path) -> None:
    (_, example) = coco_images(coco(tmp_path, [entry([1, 2, 3, 4])]), None)
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "0.png")
    with pytest.raises(BadImageError, match=r"0\.png has 40x60 pixels, its annotation says 60x40\."):
        Decoder(with_masks=False)(example)


def test_files_that_are_not_coco_s(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": None}, "is not COCO's: expected a dictionary with images, annotations and categories"),
        ({"images": []}, "has an annotation of image 5, which is none of its images"),
        ({"annotations": [{"image_id": "5"}]}, "has an annotation of image '5', which is none of its images"),
        ({"images": [{"id": 5}]}, "has an image without file_name"),
        ({"images": [{"id": 5, "file_name": "a"}] * 2}, "has two images of one id"),
        ({"categories": []}, "has no categories"),
        ({"categories": [*CATEGORIES, {"id": 9, "name": "cell"}]}, "has two categories of one id or name"),
        ({"categories": [*CATEGORIES, {"id": 7, "name": "other"}]}, "has two categories of one id or name"),
        ({"annotations": [{"bbox": [1, 2, 3, 4]}]}, "is not COCO's: an entry has no 'image_id'"),
        ({"images": [], "annotations": []}, "has no image"),
    ]
    for parts, message in cases:
        folder = coco(tmp_path, [entry([1, 2, 3, 4])], **parts)
        said = refusal(message, coco_images, folder, None)
        assert f"annotations.json {message}" in said, message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere\."):
        coco_images(tmp_path / "nowhere", None)
    with pytest.raises(FileNotFoundError, match=r"annotations\.json or .*_annotations\.coco\.json; give COCO's JSON"):
        coco_images(tmp_path, None)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        coco_images(tmp_path, str(tmp_path / "a.json"))
    with pytest.raises(ValueError, match=r"there is no training data; give --train_dir with --train_annotations"):
        open_annotated(DataArguments(), AnnotationArguments(), 0)


# What is looked at before the first step


def census(folder: Path, bbox_format: Any = "xywh", with_masks: bool = False, on_bad_image: str = "error") -> None:
    images = coco_images(folder, None)
    decode = Decoder(with_masks, bbox_format)
    check_annotations(Accelerator(cpu=True), decode, images.categories.names, images, None, on_bad_image)


CORNERS = [[n, n, 40 + n / 2, 30 + n / 2] for n in range(20)]


def test_corners_given_as_extents_are_refused(tmp_path: Path) -> None:
    """Every box lies in its image as x1, y1, x2, y2, and some do not as x, y, width, height."""
    folder = coco(tmp_path, [entry(box) for box in CORNERS])
    with pytest.raises(
        ValueError,
        match=r"^of the training boxes 12 end outside their image as x, y, width, height, and all lie inside as x1, "
        r"y1, x2, y2; give --bbox_format xyxy\.$",
    ):
        census(folder)
    census(folder, "xyxy")


def test_extents_are_not_taken_for_corners(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Boxes that reach over the image are cut, which is said."""
    boxes = [[x2 - 5.0, y2 - 5, 10, 8] for _, _, x2, y2 in CORNERS] + [[55, 35, 9, 9]]
    with caplog.at_level(logging.WARNING):
        census(coco(tmp_path, [entry(box) for box in boxes]))
    assert "none of the 21 training objects is of nucleus" in caplog.text
    assert "4 of 21 training boxes reach over their image: cut to it" in caplog.text


def test_flat_boxes_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = coco(tmp_path, [entry([1, 2, 0, 4], 3), entry([1, 2, 0.5, 4]), entry([1, 2, 3, 4])])
    with caplog.at_level(logging.WARNING):
        census(folder)
    assert "2 of 3 training boxes are less than a pixel wide or high: left out" in caplog.text
    (_, example) = coco_images(folder, None)
    decode = Decoder(with_masks=False)
    _, objects = decode(example)
    assert len(objects) == 3 and len(decode.target(example, objects, (HEIGHT, WIDTH))["boxes"]) == 1


def test_the_first_bad_image_is_named_or_all_are_left_to_their_turn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = coco(tmp_path, [entry([1, 2, 3, 4]), entry([1, 2, 3, 4], 9, image=4)])
    with pytest.raises(BadImageError, match=r"1\.png has broken objects: has the category 9"):
        census(folder)
    with caplog.at_level(logging.WARNING):
        census(folder, on_bad_image="skip")
    assert "1 of 2 training images have objects that cannot be used, and are skipped; the first, " in caplog.text
    coco(tmp_path, [entry([1, 2, 3, 4], 9), entry([1, 2, 3, 4], 9, image=4)])
    with pytest.raises(BadImageError):  # nothing would be left
        census(folder, on_bad_image="skip")


def test_files_that_are_not_there_are_named_before_the_first_step(tmp_path: Path) -> None:
    folder = coco(tmp_path, [entry([10, 10, 20, 15])])
    (folder / "1.png").unlink()
    with pytest.raises(BadImageError, match=r"1\.png cannot be read \(No such file or directory\)\."):
        census(folder)
    census(folder, on_bad_image="skip")
    (folder / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 2 training images that are annotated is there, "):
        census(folder)


def test_boxes_beside_their_polygons_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As x1, y1, x2, y2 that happen to fit as x, y, width, height have them."""
    with caplog.at_level(logging.WARNING):
        census(coco(tmp_path, [entry([10, 10, 20, 15]), entry([10, 10, 30, 25])]))
    assert (
        "1 of 2 training boxes do not enclose their polygons; are they xyxy or cxcywh (--bbox_format)?" in caplog.text
    )


def test_missing_masks_and_no_objects_at_all(tmp_path: Path) -> None:
    folder = coco(tmp_path, [entry([1, 2, 3, 4]), entry([1, 2, 3, 4], segmentation=None)])
    census(folder)
    with pytest.raises(ValueError, match=r"1 of 2 training objects have no segmentation, .* --with_masks False\."):
        census(folder, with_masks=True)
    with pytest.raises(ValueError, match=r"there is no object in the 2 training images\."):
        census(coco(tmp_path, []))


@pytest.mark.parametrize("sizes", [True, False])
def test_rows_are_looked_at_with_or_without_annotated_sizes(sizes: bool, tmp_path: Path) -> None:
    """Where nothing says how large the images are, some are read."""
    columns = {"width": [WIDTH, WIDTH], "height": [HEIGHT, HEIGHT]} if sizes else {}
    data = rows("lists", **columns)
    data = data.map(lambda row: {"objects": {"bbox": CORNERS, "category": [0] * len(CORNERS)}})
    images = Rows(data.cast_column("image", datasets.Image(decode=False)), "objects", Categories(["a", "b"]))
    assert images.annotation(0).size == ((HEIGHT, WIDTH) if sizes else None)
    with pytest.raises(ValueError, match=r"of the training boxes 24 end outside"):
        check_annotations(Accelerator(cpu=True), Decoder(False), ["a", "b"], images, None, "error")


def test_examples_are_small(tmp_path: Path) -> None:
    """Objects are bytes until they are asked for, so that workers share them."""
    images = coco_images(coco(tmp_path, [entry([1, 2, 3, 4])] * 1000), None)
    assert images._packed.nbytes < 1000 * 120 and len(images[1].objects) == 1000
    assert isinstance(images[0], Example) and images[0].objects == []
