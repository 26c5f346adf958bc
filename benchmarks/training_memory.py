"""What training a variant keeps in memory, counted without running it.

    python -m benchmarks.training_memory

States are parameters, gradients and AdamW's two moments, all float32: autocast to bfloat16 keeps them so. Activations
are the bytes that the forward saves for the backward, each storage once, of a model in training mode, as a GPU would
hold them. The tensors are fakes, without data, so that a minute on any machine counts all variants. Beside them a GPU
holds the temporaries of a backward (with checkpointing one whole block, recomputed), the kernels' workspaces and what
the allocator wastes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights

from hf_pvt import VARIANTS, variant_config
from hf_pvt.heads.semantic_fpn import resize

from .results import RESULTS

MIB = 2**20
FLOAT32_BYTES = 4
COPIES = {"parameters": 1, "gradients": 1, "AdamW": 2}
NUM_LABELS = {"classifier": 1000, "segmenter": 150}  # ImageNet-1k, ADE20K
SIZES = {"classifier": (224, 512), "segmenter": (512,)}
MODELS = {"classifier": AutoModelForImageClassification, "segmenter": AutoModelForSemanticSegmentation}
WAYS = {"float32": (False, False), "bf16": (True, False), "bf16, checkpointing": (True, True)}


@contextmanager
def autocast(model: nn.Module, enabled: bool) -> Iterator[None]:
    """A GPU's autocast to bfloat16, on the CPU: there LayerNorms would stay in bfloat16, a GPU runs them in float32."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),)) for norm in norms]
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        yield
    for hook in hooks:
        hook.remove()


@contextmanager
def saved_storages(model: nn.Module) -> Iterator[dict[int, int]]:
    """The bytes of each storage that is saved for the backward within; the model's own are left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # the graph keeps it, so its address stays its own
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def training_loss(task: str, model: nn.Module, batch: int, size: int) -> Tensor:
    """The loss of `batch` images, as the training scripts compute it; its graph holds what is saved."""
    logits = model(torch.empty(batch, 3, size, size)).logits
    if task == "classifier":
        return F.cross_entropy(logits, torch.empty(batch, logits.shape[1]))  # the targets of mixup
    labels = torch.empty(batch, size, size, dtype=torch.int64)
    return F.cross_entropy(resize(logits, (size, size)), labels)  # `semantic_loss` also looks at values


def saved_bytes(task: str, model: nn.Module, batch: int, size: int, bf16: bool) -> int:
    with saved_storages(model) as sizes, autocast(model, bf16):
        loss = training_loss(task, model, batch, size)
    total = sum(sizes.values())
    del loss
    return total


def count(task: str, config: PreTrainedConfig, sizes: tuple[int, ...]) -> dict[str, Any]:
    """MiB of a model's states, and of its activations."""
    with FakeTensorMode(), no_init_weights():
        parameters = sum(parameter.numel() for parameter in MODELS[task].from_config(config).parameters())
        return {
            "states": {name: round(copies * FLOAT32_BYTES * parameters / MIB, 2) for name, copies in COPIES.items()},
            "activations": {
                str(size): {way: count_activations(task, config, size, *WAYS[way]) for way in WAYS} for size in sizes
            },
        }


def count_activations(
    task: str, config: PreTrainedConfig, size: int, bf16: bool, checkpointing: bool
) -> dict[str, float]:
    """MiB per image, which is what grows with the batch, and the rest: autocast's bfloat16 copies of the weights."""
    model = MODELS[task].from_config(config).train()
    if checkpointing:
        # Transformers 6 drops the old name, 5.17 lacks the new one.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    one, two = (saved_bytes(task, model, batch, size, bf16) for batch in (1, 2))
    return {"per image": round((two - one) / MIB, 2), "once": round((2 * one - two) / MIB, 2)}


def run() -> dict[str, Any]:
    """All variants, as a classifier and as a segmenter."""
    results: dict[str, Any] = {task: {} for task in SIZES}
    for name in tqdm(VARIANTS, unit="variant"):
        for task, sizes in SIZES.items():
            config = variant_config(name, num_labels=NUM_LABELS[task])
            results[task][name] = count(task, config, sizes)
    return results


def table(results: dict[str, Any], task: str) -> str:
    """The Markdown table of a task, in MiB."""
    header = ["variant", *COPIES, "copies in bf16", *(f"{size}: {way}" for size in SIZES[task] for way in WAYS)]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for name, row in results[task].items():
        activations = [row["activations"][str(size)][way] for size in SIZES[task] for way in WAYS]
        copies = max(activation["once"] for activation in activations)
        numbers = [*row["states"].values(), copies, *(activation["per image"] for activation in activations)]
        lines.append(f"| `{name}` | {' | '.join(f'{number:.0f}' for number in numbers)} |")
    return "\n".join(lines)


def example(results: dict[str, Any], variant: str, images: int, size: int) -> str:
    """The arithmetic of one classifier, in words."""
    row = results["classifier"][variant]
    activations = row["activations"][str(size)]["bf16"]
    once, per_image = sum(row["states"].values()) + activations["once"], activations["per image"]
    return (
        f"`{variant}` with {images} images of {size} pixels in bf16, for example: {once:.0f} + {images} * "
        f"{per_image:.0f} MiB = {(once + images * per_image) / 1024:.1f} GiB."
    )


def main() -> None:
    results = run()
    for task in SIZES:
        print(f"\n{task}, MiB\n\n{table(results, task)}")
    (RESULTS / "training_memory.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
