"""What a forward costs beside its kernels: module calls, checks, PyTorch's dispatch.

    python -m benchmarks.overhead

PVTv2-B2 with its depth and an eighth of its widths, one image of 32 pixels, one thread: next to nothing to compute.
"""

import timm
import torch
import transformers

import hf_pvt

from .candidates import ours_config
from .fresh_process import in_fresh_process
from .machine import machine
from .measuring import sample
from .models import ours

VARIANT, WIDTHS = "pvt-v2-b2", (8, 16, 40, 64)
CANDIDATES = ("packed", "not packed", "timm", "transformers")


def build(candidate: str) -> torch.nn.Module:
    if candidate == "timm":
        return timm.create_model("pvt_v2_b2", embed_dims=WIDTHS).eval()
    if candidate == "transformers":
        config = transformers.PvtV2Config(**ours_config(VARIANT) | {"hidden_sizes": WIDTHS})
        return transformers.PvtV2ForImageClassification(config).eval()
    model = ours(VARIANT, hidden_sizes=WIDTHS)
    return hf_pvt.pack_for_cpu(model) if candidate == "packed" else model


@torch.inference_mode()
def seconds(candidate: str) -> float:
    torch.set_num_threads(1)
    model, images = build(candidate), torch.randn(1, 3, 32, 32)
    return sample(lambda: model(images))["seconds"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(machine())
    for candidate in CANDIDATES:
        print(f"{candidate}: {1e3 * in_fresh_process(seconds, candidate):.1f} ms")
