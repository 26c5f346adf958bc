"""What the published detection recipes do to an image, its boxes and its masks, as transforms of torchvision.

A scene has `image` (C, H, W), `boxes` (n, 4) x1, y1, x2, y2 in pixels, `labels` (n,) and, if there are any, `masks`
(n, H, W): torchvision's `tv_tensors`. All chance is PyTorch's CPU generator's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import SizeDict

from ...detection.coco_masks import nearest_as_cv2
from ...images.image_processing_pvt import target_size
from ...images.resampling import between_neighbours

Scene = dict[str, Any]

# At the published 800 pixels of the shorter side: sides are 32 apart, crops of 384 to 600 pixels are cut out of images
# of 400, 500 or 600. At other sizes the same shares.
STEP = 32 / 800
CROPS = (384 / 800, 600 / 800)
BEFORE_CROP = (400 / 800, 500 / 800, 600 / 800)


class RandomResize(v2.Transform):
    """The shorter side becomes one of `shorter`, if the longer one stays at most `longer`; else that is reached.

    As published: the image as by OpenCV's bilinear resizing of 8 bits, masks as by its nearest, boxes times the ratio
    of each dimension.
    """

    def __init__(self, shorter: Sequence[int], longer: int) -> None:
        super().__init__()
        self.shorter, self.longer = list(shorter), longer

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        shorter = self.shorter[int(torch.randint(len(self.shorter), ()))]
        wanted = SizeDict(shortest_edge=shorter, longest_edge=self.longer)
        height, width = v2.query_size(flat_inputs)
        return {"size": target_size(height, width, wanted, divisor=1)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        size = params["size"]
        if isinstance(inpt, tv_tensors.Image):
            pixels = between_neighbours(inpt.movedim(0, 2).numpy(), size)  # (h, w, C)
            return tv_tensors.Image(torch.from_numpy(pixels).movedim(2, 0))
        if isinstance(inpt, tv_tensors.Mask):
            masks = [nearest_as_cv2(mask, size) for mask in inpt.numpy()]
            return tv_tensors.Mask(torch.from_numpy(np.array(masks)).reshape(-1, *size))  # (n, h, w)
        return F.resize(inpt, list(size))


class RandomCrop(v2.Transform):
    """A part whose height and width are drawn from [lowest, highest], or what the image has; it may have no object."""

    def __init__(self, lowest: int, highest: int) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = v2.query_size(flat_inputs)
        height, width = (between(min(side, self.lowest), min(side, self.highest)) for side in sides)
        top, left = (between(0, side - cut) for side, cut in zip(sides, (height, width), strict=True))
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class WithoutEmptyBoxes(v2.Transform):
    """Objects are cut to the image; those that lie outside of it, or have no area in it, are left out."""

    def forward(self, *inputs: Any) -> Scene:
        (scene,) = inputs
        boxes = F.clamp_bounding_boxes(scene["boxes"])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return scene | {
            name: tv_tensors.wrap(values[kept], like=values)
            for name, values in (scene | {"boxes": boxes}).items()
            if name != "image"
        }


def between(low: int, high: int) -> int:
    """One of the numbers from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, ()))


def training_transform(
    shorter: int, longer: int, lowest: float, crop: float, horizontal_flip: float, photometric_distortion: float
) -> v2.Transform:
    """Flip, scale and distort by chance.

    Args:
        lowest: the shorter side is drawn from this share of `shorter` up to `shorter`.
        crop: the probability that a part of the image is cut out, and then scaled like the others.
    """
    scales = 1 + round((1 - lowest) / STEP)
    sides = [round(shorter * (1 - STEP * number)) for number in range(scales)]
    resize = RandomResize(sides, longer)
    flip = v2.RandomHorizontalFlip(horizontal_flip)
    distort = v2.RandomPhotometricDistort(p=photometric_distortion)
    before = RandomResize([round(shorter * share) for share in BEFORE_CROP], longer)
    cut = v2.RandomApply([before, RandomCrop(*(round(shorter * share) for share in CROPS)), WithoutEmptyBoxes()], crop)
    # As published: mirrored last where there is one scale, first where there are several.
    steps = [flip, cut, resize] if scales > 1 else [cut, resize, flip]
    return v2.Compose([*steps, *([distort] if photometric_distortion else []), WithoutEmptyBoxes()])


def scene_of(image: Any, target: dict[str, Tensor]) -> Scene:
    """A scene of an image (PIL's, or an array (H, W, C)) and the target that `detection_target` made at its size."""
    pixels = torch.from_numpy(np.array(image)).movedim(2, 0)  # (C, H, W)
    height, width = pixels.shape[1:]
    corners = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    scene = {
        "image": tv_tensors.Image(pixels),
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
        "labels": target["class_labels"],
    }
    return scene | ({"masks": tv_tensors.Mask(target["masks"])} if "masks" in target else {})


def target_of(scene: Scene) -> dict[str, Tensor]:
    """What a detector learns of a scene: `class_labels`, `boxes` as shares of the image, and `masks`, if any."""
    height, width = scene["image"].shape[1:]
    shares = scene["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height])
    target = {"class_labels": scene["labels"], "boxes": box_convert(shares, "xyxy", "cxcywh")}
    return target | ({"masks": scene["masks"].as_subclass(Tensor)} if "masks" in scene else {})
