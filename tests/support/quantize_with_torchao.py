"""Run by pyramid/test_export: a tiny model of each family with 8-bit weights, against itself and their values."""

import json

import torch
from families import P2T, PVT, PVT_V2, PVT_V2_LINEAR, perturb
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

FAMILIES = {"PVT": PVT, "PVTv2": PVT_V2, "PVTv2-Li": PVT_V2_LINEAR, "P2T": P2T}


@torch.no_grad()
def changes(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    family, images = FAMILIES[name], torch.randn(2, 3, 192, 160)
    model = family.classifier(family.tiny_config(num_labels=10)).eval()
    perturb(model)
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    expected = model(images).logits
    quantize_(model, Int8WeightOnlyConfig())
    logits = model(images).logits

    weights = model.state_dict()
    quantized = [name for name, weight in weights.items() if type(weight) not in (Tensor, nn.Parameter)]
    plain = family.classifier(model.config).eval()
    plain.load_state_dict({name: w.dequantize() if name in quantized else w for name, w in weights.items()})
    scale = expected.abs().max()
    return {
        "quantized": len(quantized),
        "linears": len(linears),
        "of_rounding": ((logits - expected).abs().max() / scale).item(),
        "of_values": ((logits - plain(images).logits).abs().max() / scale).item(),
    }


print(json.dumps({name: changes(name) for name in FAMILIES}))
