"""The benchmark of detectors: how long the parts of a forward take."""

import pytest
import torch
from families import MASK_RCNN, tiny_detector

from benchmarks.detection import Stopwatch
from hf_pvt.detection import modeling_two_stage_detector


def test_every_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """None takes no time, and together they take the whole, of a detector that has all but a dense head's own parts."""
    monkeypatch.setattr(modeling_two_stage_detector, "pool_boxes", modeling_two_stage_detector.pool_boxes)
    model = tiny_detector(MASK_RCNN)
    watch = Stopwatch(model)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    parts = watch.read(total=100.0, forwards=1)
    assert all(seconds > 0 for seconds in parts.values()) and sum(parts.values()) == pytest.approx(100)
    assert set(watch.seconds.values()) == {0.0}
