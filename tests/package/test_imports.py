"""The package itself: what it exports, and what it needs. `lint-imports` says which folder may import which."""

import ast
import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from transformers import AutoModel, PreTrainedConfig
from transformers.models.pvt_v2.configuration_pvt_v2 import PvtV2Config as TransformersPvtV2Config

import hf_pvt

# Everything that an installation with only the core dependencies does not have.
OPTIONAL = (
    "torchvision", "timm", "datasets", "accelerate", "evaluate", "sklearn", "skimage", "scipy", "matplotlib", "peft",
    "onnx", "onnxruntime", "onnxscript", "faster_coco_eval", "pycocotools",
)  # fmt: skip

CORE_ONLY = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import numpy, torch
from PIL import Image
from transformers import pipeline
import hf_pvt
model = hf_pvt.P2tForImageClassification(hf_pvt.P2tConfig(depths=[1, 1, 1, 1], num_labels=4)).eval()
processor = hf_pvt.classification_image_processor()
photo = Image.fromarray(numpy.arange(300 * 400 * 3, dtype=numpy.uint8).reshape(300, 400, 3))
pixel_values = processor(photo, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    scores = model(pixel_values).logits.softmax(-1)[0]
results = pipeline("image-classification", model=model, image_processor=processor)(photo, top_k=4)
assert abs(results[0]["score"] - scores.max().item()) < 1e-6, (results, scores)
print(type(processor).__name__, tuple(pixel_values.shape))

segmenter = hf_pvt.P2tForSemanticSegmentation(model.config).eval()
processor = hf_pvt.segmentation_image_processor(size={{"shortest_edge": 96}})
batch = processor(photo, numpy.zeros((300, 400), dtype=numpy.uint8), return_tensors="pt")
with torch.inference_mode():
    output = segmenter(**batch)
expected = torch.nn.functional.cross_entropy(
    torch.nn.functional.interpolate(output.logits, batch["labels"].shape[-2:], mode="bilinear"), batch["labels"]
)
assert abs(output.loss - expected) < 1e-6, (output.loss, expected)
labels = processor.post_process_semantic_segmentation(output, target_sizes=[(300, 400)])[0]
masks = {{
    model.config.label2id[result["label"]]: torch.from_numpy(numpy.array(result["mask"])) > 0
    for result in pipeline("image-segmentation", model=segmenter, image_processor=processor)(photo)
}}
assert set(masks) == set(labels.unique().tolist()), masks.keys()
assert all(mask.equal(labels == label) for label, mask in masks.items())
print(type(processor).__name__, tuple(batch["labels"].shape))

for detector, config in (
    (hf_pvt.RetinaNetForObjectDetection, hf_pvt.RetinaNetConfig()),
    (hf_pvt.MaskRcnnForInstanceSegmentation, hf_pvt.MaskRcnnConfig()),
):
    try:
        detector(config)
    except ImportError as error:
        print(error)
"""


@pytest.mark.processes
def test_core_dependencies_suffice() -> None:
    """Import, image processing, inference, a loss and pipelines where no optional package is installed."""
    result = subprocess.run([sys.executable, "-c", CORE_ONLY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "PvtImageProcessorPil (1, 3, 224, 224)",
        "PvtSegmentationImageProcessorPil (1, 96, 128)",
        *(
            f'{name} needs torchvision, which is not there; install it with pip install "hf_pvt[detection]".'
            for name in ("RetinaNetForObjectDetection", "MaskRcnnForInstanceSegmentation")
        ),
    ]


def test_public_names() -> None:
    """Every exported name exists and says what it is; nothing else public is in the namespace."""
    public = {name for name, value in vars(hf_pvt).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert set(hf_pvt.__all__) == public
    for name in hf_pvt.__all__:
        value = getattr(hf_pvt, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


CONFIGURATIONS = (
    (hf_pvt.PvtConfig, PreTrainedConfig),
    (hf_pvt.PvtV2Config, TransformersPvtV2Config),
    (hf_pvt.P2tConfig, PreTrainedConfig),
)


@pytest.mark.parametrize(("config", "base"), CONFIGURATIONS)
def test_configurations_are_documented(config: type[PreTrainedConfig], base: type[PreTrainedConfig]) -> None:
    """Every field that Transformers' class does not have, with its default."""
    pattern = r"^ +(\w+) \(`.+`, \*optional\*, defaults to `?(.+?)`?\):$"
    documented = dict(re.findall(pattern, config.__doc__ or "", flags=re.MULTILINE))
    names = {field.name for field in fields(config)} - {field.name for field in fields(base)}
    assert documented.keys() == {name for name in names if not name.startswith("_")}
    for name, text in documented.items():
        default = getattr(config(), name)
        if "..." in text:
            default = [default[0], ..., default[-1]]
        as_json = [json.dumps(value, default=str) for value in (ast.literal_eval(text), default)]  # a tuple is a list
        assert as_json[0] == as_json[1], name


def test_import_changes_only_the_registration() -> None:
    """Transformers' own classes stay what they are for whoever imports them by name."""
    from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2Model

    assert PvtV2Model.__module__ == "transformers.models.pvt_v2.modeling_pvt_v2"
    assert AutoModel._model_mapping[TransformersPvtV2Config] is PvtV2Model
    assert AutoModel._model_mapping[hf_pvt.PvtV2Config] is hf_pvt.PvtV2Model
