"""Limits of memory, as ratios to a plain tensor in the same process; each in a process of its own."""

import subprocess
import sys

import pytest
from paths import ROOT

pytestmark = pytest.mark.machine

PEAK = """
from collections.abc import Callable
from pathlib import Path
import torch, hf_pvt
from benchmarks.machine import memory

def peak(run: Callable) -> float:
    "MiB that the process has at its peak beyond what it has before; what the run gives is kept until then."
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    result = run()
    return memory("VmHWM") - before
"""


def measured(code: str) -> list[float]:
    """The numbers that a process prints."""
    finished = subprocess.run([sys.executable, "-c", PEAK + code], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    return [float(word) for word in finished.stdout.split()]


SIX_MEGAPIXELS = """
model = hf_pvt.RetinaNetForObjectDetection(hf_pvt.detector_config("retinanet", "pvt-v2-b0")).eval()
logits = []
model.bbox_head.register_forward_hook(lambda module, inputs, output: logits.append(output[0].shape))
with torch.inference_mode():
    model(torch.randn(1, 3, 64, 64))  # libraries are loaded before memory is counted
    image = torch.randn(1, 3, 2000, 3000)
    found = peak(lambda: model(image))
    print(found, peak(lambda: torch.ones(logits[-1])))
"""


def test_a_detector_on_six_megapixels() -> None:
    """About three times all logits in float32, the backbone's own maps included."""
    found, logits = measured(SIX_MEGAPIXELS)
    assert found < 3.1 * logits


PHOTOGRAPH = """
from types import SimpleNamespace

processor = hf_pvt.detection_image_processor()
boxes = torch.rand(1, 100, 4) * 0.1 + torch.tensor([0.4, 0.4, 0.0, 0.0])
boxes[:, ::33] = torch.tensor([0.5, 0.5, 1.0, 1.0])
outputs = SimpleNamespace(
    pred_scores=torch.linspace(0.9, 0.1, 100)[None], pred_labels=torch.zeros(1, 100).long(),
    pred_boxes=boxes, pred_masks=torch.rand(1, 100, 28, 28),
)
print(peak(lambda: torch.ones(3000, 4000)))
for settings in ({}, {"return_coco_annotation": True, "threshold": 0.85}):
    segment = processor.post_process_instance_segmentation
    segment(outputs, target_sizes=[(40, 40)], **settings)
    print(peak(lambda: segment(outputs, overlap_mask_area_threshold=0, target_sizes=[(3000, 4000)], **settings)))
"""


def test_masks_of_a_photograph() -> None:
    """100 masks of 12 megapixels, four of them as large as the image, need what four of them are in float32."""
    mask, in_map, encoded = measured(PHOTOGRAPH)
    assert max(in_map, encoded) < 4.3 * mask
