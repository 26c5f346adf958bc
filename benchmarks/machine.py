"""What a measurement depends on beside the code: the processor, the libraries, the best product of the machine."""

import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

# Of all flags of a processor, those that decide which products it can do.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
LIBRARIES = ("torch", "timm", "transformers", "onnxruntime")
# Rows, inputs and outputs of the products that the limit's rate is the best of: linears of PVTv2-B2's four stages.
PRODUCTS = ((3136, 64, 512), (3136, 512, 64), (784, 128, 1024), (784, 1024, 128), (784, 320, 1280), (784, 1280, 320))


def processor() -> dict[str, Any]:
    """Name, family, model and flags of /proc/cpuinfo, and the threads that PyTorch takes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "name": fields.get("model name", platform.processor()),
        "family": fields.get("cpu family", "unknown"),
        "model": fields.get("model", "unknown"),
        "flags": [flag for flag in FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
    }


def processor_text(processor: dict[str, Any]) -> str:
    flags = ", ".join(processor["flags"])
    return (
        f"{processor['threads']} threads, {processor['name']} "
        f"(family {processor['family']}, model {processor['model']}; {flags})"
    )


def processor_slug(processor: dict[str, Any]) -> str:
    """A name for files, such as "amd-epyc-family-26-model-2-threads-2"."""
    name = re.sub(r"\(r\)|\(tm\)|@.*", "", processor["name"].lower())
    parts = (name, "family", processor["family"], "model", processor["model"], "threads", processor["threads"])
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, parts))).strip("-")


def versions() -> dict[str, str]:
    return {library: version(library).split("+")[0] for library in LIBRARIES}


def machine() -> str:
    """One line for a table that keeps no results of other machines."""
    return f"{torch.get_num_threads()} threads, {processor()['name']}, torch {versions()['torch']}"


def memory(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {field} in /proc/self/status")


@torch.inference_mode()
def best_product_rate(dtype: str) -> float:
    """The best FLOP/s of the model's products in a type, through either library that PyTorch has for them."""
    best = 0.0
    for rows, inputs, outputs in PRODUCTS:
        shapes = ((1, rows, inputs), (outputs, inputs), (outputs,))
        tokens, weight, bias = (torch.randn(shape).to(getattr(torch, dtype)) for shape in shapes)
        column_map = tokens.unsqueeze(2).permute(0, 3, 1, 2)  # (1, C, N, 1)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        for product in (
            lambda t=tokens, w=weight, b=bias: F.linear(t, w, b),
            lambda m=column_map, w=weight, b=bias: F.conv2d(m, w[:, :, None, None], b),
            lambda t=tokens, w=packed, b=bias: torch.ops.mkldnn._linear_pointwise.default(t, w, b, "none", [], ""),
        ):
            for _ in range(30):
                start = time.perf_counter()
                product()
                best = max(best, 2 * rows * inputs * outputs / (time.perf_counter() - start))
    return best
