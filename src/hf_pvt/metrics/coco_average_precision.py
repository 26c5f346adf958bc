"""COCO's average precision and recall of boxes and masks, one image's record at a time."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..detection.coco_masks import Size, compress_mask, mask_library, shortened
from .evidence_metric import Array, EvidenceMetric, as_array, as_integers

Record = dict[str, Any]

logger = logging.getLogger(__name__)

# In the order in which COCO's code gives them.
STATISTICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


class CocoAveragePrecision(EvidenceMetric):
    """COCO's twelve numbers, of boxes and of masks, and the average precision of each label, by faster-coco-eval.

    Predictions are what `post_process_object_detection` gives, one dict for each image: `scores` (n,), `labels` (n,)
    and `boxes` (n, 4), x1, y1, x2, y2 in pixels of the original image; for masks also `segmentation`, n run-length
    encodings, as `post_process_instance_segmentation(return_coco_annotation=True)` gives it. References are

        {"image_id": 7, "size": (H, W), "annotations": [{"bbox": [x, y, w, h], "category_id": label from 0, ...}]}

    where an annotation may have `iscrowd` (default: 0), `segmentation` (polygons or a run-length encoding; needed for
    masks) and `area` in pixels (default: its segmentation's where there is one, else its box's).

    `compute()` returns box_ap (over IoU 0.50 to 0.95), box_ap50, box_ap75, box_ap_small (areas below 32^2),
    box_ap_medium, box_ap_large (above 96^2), the recall of so many detections per image box_ar1, box_ar10, box_ar100,
    box_ar_small, box_ar_medium, box_ar_large, floats in [0, 1], and per_category_box_ap, float64 (num_labels,); of
    masks the same with mask_ in place of box_. Where there is no object to find, which COCO writes as -1, it is NaN; a
    label without objects is left out of the means. Of an image the best 100 detections of each label count.

    Kept of each image are its numbers and compressed encodings, and no pixels.

    Args:
        names: of the labels, in their order.
        with_masks: whether masks are scored beside boxes.
        evaluate_kwargs: `num_process`, `process_id`, `experiment_id`, `cache_dir`, ... of `evaluate.Metric`.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """

    def __init__(self, names: Sequence[str], with_masks: bool = False, **evaluate_kwargs: Any) -> None:
        if isinstance(names, str) or not names:
            raise ValueError(f"names is {names!r}, expected the names of all labels.")
        mask_library()
        self.names, self.with_masks = list(names), with_masks
        super().__init__([], **evaluate_kwargs)

    def count(self, predictions: Any, references: Any) -> list[Record]:
        """A record for each image, ready for JSON."""
        return [self._record(*pair) for pair in zip(predictions, references, strict=True)]

    def result(self, records: list[Record], examples: int) -> dict[str, Any]:
        """The scores of all images.

        Raises:
            ValueError: an image is there twice, or not as many records as examples.
        """
        if len(records) != examples:
            raise ValueError(f"there are {len(records)} records of {examples} images, expected one of each.")
        _once(records, set())
        records = sorted(records, key=lambda record: record["image_id"])  # equal scores count in this order
        return self._scores(records, "box") | (self._scores(records, "mask") if self.with_masks else {})

    def _reset(self) -> None:
        super()._reset()
        self._image_ids: set[int] = set()

    def _keep(self, evidence: list[Record]) -> None:
        self._image_ids |= _once(evidence, self._image_ids)
        super()._keep(evidence)

    def _record(self, prediction: Any, reference: Any) -> Record:
        image_id, size, annotations = _reference_parts(reference)
        truth = [
            self._object(annotation, size, f"annotation {index} of image {image_id}")
            for index, annotation in enumerate(annotations)
        ]
        found = self._detections(prediction, size, f"the prediction for image {image_id}")
        return {"image_id": image_id, "size": list(size), "annotations": truth, "detections": found}

    def _object(self, annotation: Any, size: Size, where: str) -> Record:
        if not isinstance(annotation, Mapping) or not {"bbox", "category_id"} <= annotation.keys():
            raise ValueError(f"{where} is {shortened(annotation)}, expected a dict with at least bbox and category_id.")
        box = _numbers(annotation["bbox"], f"the box of {where}", (4,))
        if (box[2:] < 0).any():
            raise ValueError(f"{where} has the box {box.tolist()}, expected x, y, width >= 0, height >= 0.")
        crowd = annotation.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise ValueError(f"{where} has iscrowd {crowd!r}, expected 0 or 1.")
        label = self._labels([annotation["category_id"]], f"labels of {where}")[0]
        entry: Record = {"bbox": box.tolist(), "category_id": label, "iscrowd": int(crowd)}
        area, segmentation = annotation.get("area"), annotation.get("segmentation")
        if self.with_masks or (area is None and segmentation):
            entry["segmentation"] = compress_mask(segmentation, size, where)
        area = _area(entry) if area is None else float(_numbers(area, f"the area of {where}", ()))
        if area < 0:
            raise ValueError(f"{where} has area {area}, expected at least 0.")
        return entry | {"area": area}

    def _detections(self, prediction: Any, size: Size, where: str) -> list[Record]:
        names = ("scores", "labels", "boxes", *(["segmentation"] if self.with_masks else []))
        if not isinstance(prediction, Mapping) or not set(names) <= prediction.keys():
            raise ValueError(f"{where} is {shortened(prediction)}, expected a dict with {', '.join(names)}.")
        scores = _numbers(prediction["scores"], f"scores of {where}", (-1,))
        corners = _numbers(prediction["boxes"], f"boxes of {where}", (len(scores), 4))
        labels = self._labels(prediction["labels"], f"labels of {where}")
        masks = list(prediction["segmentation"]) if self.with_masks else [None] * len(scores)
        if not len(scores) == len(labels) == len(masks):
            has = f"{len(scores)} scores, {len(labels)} labels" + (f", {len(masks)} masks" if self.with_masks else "")
            raise ValueError(f"{where} has {has}; expected as many of each.")
        extents = corners[:, 2:] - corners[:, :2]  # (n, 2)
        if (extents < 0).any():
            wrong = corners[(extents < 0).any(axis=1)][0]
            raise ValueError(f"{where} has the box {wrong.tolist()}, expected x1, y1, x2 >= x1, y2 >= y1.")
        boxes = np.concatenate([corners[:, :2], extents], axis=1)  # (n, 4): x, y, w, h
        columns = zip(boxes.tolist(), labels, scores.tolist(), strict=True)
        found: list[Record] = [{"bbox": box, "category_id": label, "score": score} for box, label, score in columns]
        if self.with_masks:
            for index, (entry, mask) in enumerate(zip(found, masks, strict=True)):
                entry["segmentation"] = compress_mask(mask, size, f"detection {index} of {where}")
        return found

    def _labels(self, values: Any, name: str) -> list[int]:
        labels = as_integers(values, name)
        strangers = labels[(labels < 0) | (labels >= len(self.names))]
        if labels.ndim != 1 or strangers.size:
            given = f"have shape {labels.shape}" if labels.ndim != 1 else f"hold {strangers[0]}"
            raise ValueError(
                f"{name} {given}, expected labels in [0, {len(self.names)}); a file's categories have to become "
                "labels first."
            )
        return [int(label) for label in labels]

    def _scores(self, records: list[Record], kind: str) -> dict[str, Any]:
        """The numbers of boxes or of masks."""
        from faster_coco_eval import COCOeval_faster

        evaluation = COCOeval_faster(
            self._dataset(records, "annotations", kind),
            self._dataset(records, "detections", kind),
            "bbox" if kind == "box" else "segm",
            print_function=logger.debug,
        )
        evaluation.run()
        scores: dict[str, Any] = {
            f"{kind}_{name}": float(value) if value > -1 else np.nan
            for name, value in zip(STATISTICS, evaluation.stats, strict=True)
        }
        # Thresholds, places of the recall, labels, areas (the first: all) and detections (the last: 100).
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        each = [values[values > -1] for values in np.moveaxis(precision, 2, 0)]
        scores[f"per_category_{kind}_ap"] = np.array([values.mean() if values.size else np.nan for values in each])
        return scores

    def _dataset(self, records: list[Record], group: str, kind: str) -> Any:
        """Annotations or detections as the library's data set, numbered from 1, because 0 is no match to it."""
        from faster_coco_eval import COCO

        entries: list[Record] = []
        for image, record in enumerate(records):
            for entry in record[group]:
                entry = {name: value for name, value in entry.items() if kind == "mask" or name != "segmentation"}
                entries.append({"area": _area(entry)} | entry | {"id": len(entries) + 1, "image_id": image})
        sizes = [record["size"] for record in records]
        images = [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)]
        categories = [{"id": label, "name": name} for label, name in enumerate(self.names)]
        return COCO({"images": images, "categories": categories, "annotations": entries})


def _reference_parts(reference: Any) -> tuple[int, Size, list[Any]]:
    """The image's number, its height and width, and its annotations."""
    if not isinstance(reference, Mapping) or not {"image_id", "size", "annotations"} <= reference.keys():
        raise ValueError(f"a reference is {shortened(reference)}, expected a dict with image_id, size and annotations.")
    number = as_array(reference["image_id"])
    if number.size != 1 or not np.issubdtype(number.dtype, np.integer):
        raise ValueError(f"image_id is {reference['image_id']!r}, expected an integer.")
    image_id = number.item()
    size = as_array(reference["size"])
    if size.shape != (2,) or not np.issubdtype(size.dtype, np.integer) or (size < 1).any():
        raise ValueError(f"the size of image {image_id} is {reference['size']!r}, expected (height, width) in pixels.")
    return image_id, (int(size[0]), int(size[1])), list(reference["annotations"])


def _numbers(values: Any, name: str, shape: tuple[int, ...]) -> Array:
    """Finite numbers as float64; -1 in the shape stands for any length."""
    try:
        array = as_array(values).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {shortened(values)}.") from error
    if 0 in shape and not array.size:
        return array.reshape(shape)  # an empty list has no second axis
    if array.ndim != len(shape) or any(want not in (-1, has) for has, want in zip(array.shape, shape, strict=True)):
        wanted = ", ".join("n" if want == -1 else str(want) for want in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}.")
    return array


def _area(entry: Record) -> float:
    """Pixels of the mask where there is one, else of the box."""
    if "segmentation" in entry:
        return float(mask_library().area(entry["segmentation"]))
    return entry["bbox"][2] * entry["bbox"][3]


def _once(records: Iterable[Record], seen: set[int]) -> set[int]:
    """The numbers of the records' images, none of which is among those `seen`, or twice here."""
    new: set[int] = set()
    for record in records:
        image_id = record["image_id"]
        if image_id in seen or image_id in new:
            raise ValueError(f"image {image_id} was added twice; each image counts once.")
        new.add(image_id)
    return new
