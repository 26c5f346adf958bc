"""What a detector needs of memory for a large photograph."""

import subprocess
import sys

from paths import ROOT

# Peak memory (MiB) beyond model and image.
MEASURE = """
from pathlib import Path
import torch, hf_pvt
from benchmarks.machine import memory

model = hf_pvt.RetinaNetForObjectDetection(hf_pvt.detector_config("retinanet", "pvt-v2-b0")).eval()
with torch.inference_mode():
    model(torch.randn(1, 3, 64, 64))  # libraries are loaded before memory is counted
    image = torch.randn(1, 3, 2000, 3000)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    assert model(image).pred_scores.shape == (1, 100)
print(memory("VmHWM") - before)
"""


def test_six_megapixels() -> None:
    """Half of the two gigabytes that it may need; all logits at once are 353 MiB."""
    finished = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout.split()[-1]) < 1100
