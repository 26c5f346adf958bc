"""A detector's output in the pixels of the original images, as Transformers' other detectors give it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coco_masks import encode_mask
from .parts.mask_pasting import paste_masks, pasted_windows

Size = tuple[int, int]  # height, width

# How far, in shares of the image, a box that was clipped may seem to reach over it. Sparse R-CNN's are not clipped, as
# published, and reach over it indeed.
ROUNDING = 1e-5


class DetectionPostProcessing:
    """The methods of a processor that follow the model.

    The model has already done the most: the published threshold of 0.05, suppression within classes, the best 100.
    What the published RetinaNet keeps though it has no area is dropped here.
    """

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.05, target_sizes: Any = None
    ) -> list[dict[str, Tensor]]:
        """For each image `scores` (n,) above `threshold`, best first, `labels` (n,), `boxes` (n, 4) x1, y1, x2, y2.

        Args:
            target_sizes: height and width of each original image, as pairs or (B, 2), in whose pixels the boxes are;
                None: they are shares of the image.

        Raises:
            ValueError: outputs of the training mode, or not as many sizes as images.
        """
        return [detections for detections, _ in _kept(outputs, threshold, _sizes(outputs, target_sizes))]

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.05,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Any = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """For each image `segmentation` and `segments_info`, and `scores`, `labels`, `boxes` of the segments, in order.

        `segments_info` is a list of `{"id": from 1, "label_id": ..., "was_fused": False, "score": ...}`.
        `segmentation` is a map (H, W) int32 of these ids, 0 where there is none: a pixel goes to the best of the masks
        that cover it, and where no more than `overlap_mask_area_threshold` of a mask remains, it is left out. The two
        other forms keep all detections and their whole masks, which COCO evaluates.

        Args:
            mask_threshold: the least probability inside a mask.
            target_sizes: height and width of each original image, as pairs or (B, 2).
            return_coco_annotation: `segmentation` is a list of COCO's run-length encodings, one for each mask:
                `{"size": [H, W], "counts": "..."}`. Transformers' own processors return another encoding, of the map.
            return_binary_maps: `segmentation` is (n, H, W) bool.

        Raises:
            ValueError: outputs of the training mode or without masks, no target sizes, not as many as images, or both
                other forms at once.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps are two forms of the masks; choose one.")
        if target_sizes is None:
            raise ValueError("masks are drawn at the original images' sizes; pass target_sizes, (height, width) each.")
        sizes = _sizes(outputs, target_sizes)
        if getattr(outputs, "pred_masks", None) is None:
            raise ValueError("the model has no masks (with_masks=False); use post_process_object_detection.")
        results = []
        for image_masks, (detections, kept), size in zip(
            outputs.pred_masks, _kept(outputs, threshold, sizes), sizes, strict=True
        ):
            where = (image_masks[kept], detections["boxes"], size, mask_threshold)
            segmentation: Any
            if return_binary_maps:
                segmentation = paste_masks(*where)
            elif return_coco_annotation:
                segmentation = _run_lengths(*where)
            else:
                segmentation, visible = _segmentation_map(*where, overlap_mask_area_threshold)
                detections = {name: values[visible] for name, values in detections.items()}
            results.append({"segmentation": segmentation, "segments_info": _segments_info(**detections)} | detections)
        return results


def _sizes(outputs: Any, target_sizes: Any) -> list[Size]:
    """(height, width) of each image; 1 where boxes shall stay shares of it."""
    if getattr(outputs, "pred_scores", None) is None:
        raise ValueError("the outputs hold no detections, as in training mode; call model.eval() first.")
    count = len(outputs.pred_scores)
    sizes = [(1, 1)] * count if target_sizes is None else [(int(height), int(width)) for height, width in target_sizes]
    if len(sizes) != count:
        raise ValueError(f"got {len(sizes)} target sizes for {count} images; pass one for each.")
    return sizes


def _kept(outputs: Any, threshold: float, sizes: list[Size]) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The detections of each image, and which of the model's they are (D,); empty places have no area either."""
    results = []
    every = zip(outputs.pred_scores.float(), outputs.pred_labels, outputs.pred_boxes.float(), sizes, strict=True)
    for scores, labels, boxes, (height, width) in every:
        centre, extent = boxes.chunk(2, dim=-1)  # (D, 2)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=-1)  # (D, 4)
        inside = corners.clamp(0, 1)
        corners = torch.where((corners - inside).abs() < ROUNDING, inside, corners)
        corners = corners * corners.new_tensor([width, height, width, height])
        kept = (scores > threshold) & (corners[:, 2:] > corners[:, :2]).all(dim=-1)
        results.append(({"scores": scores[kept], "labels": labels[kept], "boxes": corners[kept]}, kept))
    return results


def _segments_info(scores: Tensor, labels: Tensor, **_: Tensor) -> list[dict[str, Any]]:
    return [
        {"id": number, "label_id": label, "was_fused": False, "score": round(score, 6)}
        for number, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True), start=1)
    ]


def _segmentation_map(
    masks: Tensor, boxes: Tensor, size: Size, mask_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[int]]:
    """The map (H, W) of numbers from 1, and which detections they are."""
    segmentation = torch.zeros(size, dtype=torch.int32, device=masks.device)
    visible = []
    for index, (window, pixels) in enumerate(pasted_windows(masks, boxes, size, mask_threshold)):
        area = pixels.count_nonzero()
        pixels &= segmentation[window] == 0
        if pixels.count_nonzero() > overlap_threshold * area:
            visible.append(index)
            segmentation[window].masked_fill_(pixels, len(visible))
    return segmentation, visible


def _run_lengths(masks: Tensor, boxes: Tensor, size: Size, mask_threshold: float) -> list[dict[str, Any]]:
    encodings = []
    for window, pixels in pasted_windows(masks, boxes, size, mask_threshold):
        mask = np.zeros(size, dtype=np.bool_)
        mask[window] = pixels.cpu().numpy()
        encodings.append(encode_mask(mask))
    return encodings
