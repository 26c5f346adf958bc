"""What a forward costs beside its kernels: module calls, checks, PyTorch's dispatch.

    python -m benchmarks.overhead

PVTv2-B2 with its depth and an eighth of its widths, one image of 32 pixels, one thread: next to nothing to compute.
"""

import timm
import torch
import transformers

import hf_pvt

from .fresh_process import in_fresh_process
from .machine import machine
from .measuring import sample

NARROW = {"hidden_sizes": (8, 16, 40, 64), "drop_path_rate": 0.0}
CANDIDATES = ("packed", "not packed", "timm", "transformers")


def build(candidate: str) -> torch.nn.Module:
    if candidate == "timm":
        return timm.create_model("pvt_v2_b2", embed_dims=NARROW["hidden_sizes"]).eval()
    if candidate == "transformers":
        fields = hf_pvt.VARIANTS["pvt-v2-b2"].architecture | NARROW
        return transformers.PvtV2ForImageClassification(transformers.PvtV2Config(**fields)).eval()
    model = hf_pvt.PvtV2ForImageClassification(hf_pvt.variant_config("pvt-v2-b2", **NARROW)).eval()
    return hf_pvt.pack_for_cpu(model) if candidate == "packed" else model


@torch.inference_mode()
def seconds(candidate: str) -> float:
    torch.set_num_threads(1)
    model, images = build(candidate), torch.randn(1, 3, 32, 32)
    return sample(lambda: model(images))["seconds"]


if __name__ == "__main__":
    print(machine())
    for candidate in CANDIDATES:
        print(f"{candidate}: {1e3 * in_fresh_process(seconds, candidate):.1f} ms")
