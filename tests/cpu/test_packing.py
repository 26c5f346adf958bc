"""Packed models: the same numbers, at any size and from any process; what cannot be done with them is said."""

import copy
import multiprocessing
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from families import MASK_RCNN, P2T, PVT, PVT_V2, PVT_V2_LINEAR, RETINANET, SPARSE_RCNN, Family, perturb, tiny_detector
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageClassification, pipeline

import hf_pvt
from hf_pvt import pack_for_cpu
from hf_pvt.cpu.packing import Packed

ONE, ODD = (1, 3, 64, 64), (3, 3, 97, 130)
# Each family twice, each kind at both sizes.
CASES = [
    (PVT, "classifier", ODD),
    (PVT, "backbone", ONE),
    (PVT_V2, "segmenter", ODD),
    (PVT_V2, "model", ONE),
    (PVT_V2_LINEAR, "backbone", ODD),
    (PVT_V2_LINEAR, "classifier", ONE),
    (P2T, "model", ODD),
    (P2T, "segmenter", ONE),
]


def tiny(family: Family = PVT_V2, kind: str = "classifier", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = getattr(family, kind)(family.tiny_config()).eval()
    perturb(model)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tensors(model: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    output = model(pixel_values)
    return list(output.feature_maps) if "feature_maps" in output else [output[0]]


def close(found: list[Tensor], expected: list[Tensor], share: float = 2e-6) -> None:
    """To a share of the output's scale."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=share * other.abs().max().item())


@pytest.mark.parametrize(("family", "kind", "shape"), CASES, ids=str)
def test_the_same_numbers(family: Family, kind: str, shape: tuple[int, ...]) -> None:
    """Of every linear and convolution, at any size and batch; asked for with gradients on or off."""
    model = tiny(family, kind)
    expected = tensors(model, images(*shape))
    packed = pack_for_cpu(model)
    assert packed is model
    assert not any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in packed.modules())
    close(tensors(packed, images(*shape)), expected)
    assert not packed(images(*shape))[0][0].requires_grad


@pytest.mark.parametrize(
    "name",
    ["pvt-v2-b0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pvt-tiny", "pvt-v2-b2-li", "p2t-tiny"))],
)
def test_exact_against_the_recorded_outputs(name: str, tmp_path: Path) -> None:
    """A published checkpoint of each kind, packed, float32 and bfloat16: also the same most likely label."""
    torch.save(reference.checkpoint(name), tmp_path / "published.pth")
    model = hf_pvt.load_original(tmp_path / "published.pth")
    ((height, width),) = reference.recorded_sizes(name, "logits")
    pixel_values, logits = reference.image(height, width), reference.logits(name, height, width)
    for dtype, limit in ((None, 1e-5), (torch.bfloat16, 2e-2)):
        found = tensors(pack_for_cpu(copy.deepcopy(model), dtype), pixel_values)[0]
        close([found], [logits], limit)
        assert found.argmax(-1).equal(logits.argmax(-1))


@pytest.mark.parametrize("detector", [RETINANET, MASK_RCNN, SPARSE_RCNN], ids=str)
def test_detectors(detector: Any) -> None:
    model, pixel_values = tiny_detector(detector), images(2, 3, 96, 128)
    with torch.no_grad():
        expected, found = model(pixel_values), pack_for_cpu(copy.deepcopy(model))(pixel_values)
    close([found.pred_scores, found.pred_boxes], [expected.pred_scores, expected.pred_boxes], 1e-5)
    assert found.pred_labels.equal(expected.pred_labels)


def test_saved_copied_and_pickled(tmp_path: Path) -> None:
    """The weights are those that were packed; copies and pickles are packed."""
    model = tiny()
    plain, expected = copy.deepcopy(model), tensors(model, images(2, 3, 64, 96))
    packed = pack_for_cpu(model)
    weights = packed.state_dict()
    assert list(weights) == list(plain.state_dict())
    assert all(weights[name].equal(weight) for name, weight in plain.state_dict().items())
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert sum(isinstance(layer, Packed) for layer in twin.modules()) > 30
        assert tensors(twin, images(2, 3, 64, 96))[0].equal(tensors(packed, images(2, 3, 64, 96))[0])
    packed.save_pretrained(tmp_path)
    opened = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert all(opened.state_dict()[name].equal(weight) for name, weight in plain.state_dict().items())
    close(tensors(opened, images(2, 3, 64, 96)), expected)


def test_weights_that_are_loaded_take_effect() -> None:
    packed, other = pack_for_cpu(tiny()), tiny(seed=1)
    expected = tensors(other, images(1, 3, 64, 64))
    packed.load_state_dict(other.state_dict())
    close(tensors(packed, images(1, 3, 64, 64)), expected)
    weights = other.state_dict()
    name = next(name for name in weights if name.endswith("query.weight"))
    lacking = {key: weight for key, weight in weights.items() if key != name}
    with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: \"{name}\""):
        packed.load_state_dict(lacking)
    with pytest.raises(RuntimeError, match=rf"{name} has shape \(2, 3\), expected \(16, 16\)\."):
        packed.load_state_dict(weights | {name: torch.zeros(2, 3)})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"more\""):
        packed.load_state_dict(weights | {"more": torch.zeros(1)})


def test_what_stays_a_parameter_takes_effect() -> None:
    packed = pack_for_cpu(tiny())
    before = tensors(packed, images(1, 3, 64, 64))[0]
    packed.classifier.bias.data.add_(1)
    close(tensors(packed, images(1, 3, 64, 64)), [before + 1], 1e-5)


def test_what_a_packed_model_refuses() -> None:
    packed = pack_for_cpu(tiny())
    with pytest.raises(AttributeError, match=r"the weight of a packed layer cannot be read or changed in place"):
        packed.classifier.weight.data.zero_()
    with pytest.raises(
        RuntimeError, match=r"a packed model cannot be trained; take one that pack_for_cpu has not seen"
    ):
        packed.train()
    assert not any(part.training for part in packed.modules())
    for moved in (lambda: packed.to(torch.float64), packed.bfloat16, lambda: packed.to("meta")):
        with pytest.raises(
            RuntimeError, match=r"a packed model stays on the CPU in torch\.float32; move or convert it"
        ):
            moved()
    assert packed.dtype == torch.float32 and packed.to("cpu").float().eval() is packed
    with pytest.raises(RuntimeError, match=r"a packed model has no gradients; take one that pack_for_cpu has not"):
        packed(images(1, 3, 64, 64).requires_grad_())


def test_what_is_not_packed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the model is in training mode, and a packed one cannot be trained; call"):
        pack_for_cpu(tiny().train())
    with pytest.raises(ValueError, match=r"dtype is torch\.float16, expected torch\.float32 or torch\.bfloat16\."):
        pack_for_cpu(tiny(), torch.float16)
    elsewhere = PVT_V2.classifier(PVT_V2.tiny_config()).eval().to("meta")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for model in (elsewhere, tiny()):
        assert not any(isinstance(part, Packed) for part in pack_for_cpu(model).modules())


def test_a_watched_layer_stays() -> None:
    model, seen = tiny(), []
    expected = tensors(model, images(1, 3, 64, 64))
    model.classifier.register_forward_hook(lambda *_: seen.append(1))
    packed = pack_for_cpu(model)
    close(tensors(packed, images(1, 3, 64, 64)), expected)
    assert isinstance(packed.classifier, nn.Linear) and seen == [1]


def test_autocast_changes_nothing() -> None:
    packed = pack_for_cpu(tiny())
    expected = tensors(packed, images(1, 3, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        close(tensors(packed, images(1, 3, 64, 64)), expected, 2e-2)  # attention is in bfloat16


def test_memory_is_not_doubled() -> None:
    """Of the plain weights nothing is left."""
    model = tiny()
    left = [weakref.ref(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    pack_for_cpu(model)
    assert len(left) > 30 and not any(weight() is not None for weight in left)


# Threads and processes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_computes_the_same() -> None:
    """Its layers stay outside of the graphs; who wants one graph is told to compile a plain model."""
    packed, pixel_values = pack_for_cpu(tiny()), images(1, 3, 64, 64)
    expected = tensors(packed, pixel_values)
    close(tensors(torch.compile(packed, backend="aot_eager"), pixel_values), expected)
    torch.compiler.reset()
    with pytest.raises(Exception, match="compile a plain model"):
        tensors(torch.compile(packed, backend="aot_eager", fullgraph=True), pixel_values)


def test_threads_and_two_models_at_once() -> None:
    models = [pack_for_cpu(tiny(seed=seed)) for seed in (0, 1)]
    expected = [tensors(tiny(seed=seed), images(2, 3, 64, 96)) for seed in (0, 1)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(tensors, models, [images(2, 3, 64, 96)] * 2))
            for one, other in zip(found, expected, strict=True):
                close(one, other)
    finally:
        torch.set_num_threads(before)


class Predictions(Dataset[Tensor]):
    """What a model says of images, computed where the data is read."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return tensors(self.model, images(1, 3, 64, 64) + index)[0][0]


@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_worker_of_a_data_loader(method: str) -> None:
    packed = pack_for_cpu(tiny())
    expected = [tensors(packed, images(1, 3, 64, 64) + index)[0] for index in range(2)]
    (found,) = DataLoader(Predictions(packed), batch_size=2, num_workers=1, multiprocessing_context=method)
    close([found], [torch.cat(expected)])


@pytest.mark.processes
def test_in_a_forked_server() -> None:
    """After forward passes in the parent."""
    packed = pack_for_cpu(tiny())
    expected = tensors(packed, images(2, 3, 64, 64))[0]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def serve() -> None:
        torch.set_num_threads(1)
        sender.send(tensors(packed, images(2, 3, 64, 64))[0].tolist())

    process = context.Process(target=serve)
    process.start()
    assert receiver.poll(60)
    close([torch.tensor(receiver.recv())], [expected])
    process.join()


def test_pipelines_take_it(tmp_path: Path) -> None:
    model, processor = tiny(), hf_pvt.classification_image_processor(64)
    image = Image.effect_noise((80, 70), 60).convert("RGB")
    expected = pipeline("image-classification", model=copy.deepcopy(model), image_processor=processor, device="cpu")(
        image
    )
    found = pipeline("image-classification", model=pack_for_cpu(model), image_processor=processor, device="cpu")(image)
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-6)
