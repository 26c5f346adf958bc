"""Files go both ways between this package, stock Transformers, timm and machines where the package is missing."""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from families import IMAGE_SIZE, P2T, PVT, PVT_V2, PVT_V2_LINEAR, TINY, Family, perturb
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.pvt.configuration_pvt import PvtConfig as StockPvtConfig
from transformers.models.pvt.modeling_pvt import PvtForImageClassification as StockPvtForImageClassification
from transformers.models.pvt.modeling_pvt import PvtModel as StockPvtModel
from transformers.models.pvt_v2.configuration_pvt_v2 import PvtV2Config as StockPvtV2Config
from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2ForImageClassification as StockPvtV2ForImageClassification
from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2Model as StockPvtV2Model

import hf_pvt
from hf_pvt.pyramid.weight_names_pvt import FILE_TO_MEMORY, MEMORY_TO_FILE, rename

# Transformers has one epsilon, the published models have two.
ONE_EPSILON = {"layer_norm_eps": 1e-6, "reduction_layer_norm_eps": 1e-6}
LABELS: dict[str, Any] = {
    "num_labels": 3,
    "id2label": {0: "cat", 1: "dog", 2: "horse"},
    "label2id": {"cat": 0, "dog": 1, "horse": 2},
}


@dataclass(frozen=True)
class Twins:
    """One of our classes, and the class of the same name in stock Transformers."""

    family: Family
    ours: type[PreTrainedModel]
    stock: type[PreTrainedModel]
    stock_config: type[PreTrainedConfig]

    def build_ours(self, **overrides: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        model = self.ours(self.family.tiny_config(**overrides))
        perturb(model)
        return model.eval()

    def build_stock(self, **overrides: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        model = self.stock(self.stock_config(**(TINY | self.family.fields | overrides)))
        perturb(model)
        return model.eval()

    def __str__(self) -> str:
        return f"{self.family}-{'classifier' if self.ours is self.family.classifier else 'model'}"


CLASSIFIERS = (
    Twins(PVT, PVT.classifier, StockPvtForImageClassification, StockPvtConfig),
    Twins(PVT_V2, PVT_V2.classifier, StockPvtV2ForImageClassification, StockPvtV2Config),
    Twins(PVT_V2_LINEAR, PVT_V2_LINEAR.classifier, StockPvtV2ForImageClassification, StockPvtV2Config),
)
MODELS = (
    Twins(PVT, PVT.model, StockPvtModel, StockPvtConfig),
    Twins(PVT_V2, PVT_V2.model, StockPvtV2Model, StockPvtV2Config),
    Twins(PVT_V2_LINEAR, PVT_V2_LINEAR.model, StockPvtV2Model, StockPvtV2Config),
)
TWINS = (*CLASSIFIERS, *MODELS)


def images(height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Tensor:
    """Two of them."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model: nn.Module, pixel_values: Tensor, **kwargs: Any) -> dict[str, Any]:
    return dict(model.eval()(pixel_values, **kwargs))


def main_output(model: nn.Module, pixel_values: Tensor | None = None) -> Tensor:
    """The logits of a classifier, the last hidden state of a bare model, the last map of a backbone."""
    values = outputs(model, images() if pixel_values is None else pixel_values)
    return values["feature_maps"][-1] if "feature_maps" in values else next(iter(values.values()))


def assert_same_outputs(ours: PreTrainedModel, stock: PreTrainedModel) -> None:
    """In the precision of use; and in double, where not even an epsilon or a bias can hide behind rounding."""
    # Stock PVT takes the configured size only.
    pixel_values = images() if ours.config.model_type == "pvt" else images(64, 96)
    expected = main_output(stock, pixel_values)
    assert expected.std() > 0.1, "too small to tell anything"
    torch.testing.assert_close(main_output(ours, pixel_values), expected, atol=1e-5, rtol=0)

    ours, stock, pixel_values = copy.deepcopy(ours).double(), copy.deepcopy(stock).double(), pixel_values.double()
    torch.testing.assert_close(main_output(ours, pixel_values), main_output(stock, pixel_values), atol=1e-10, rtol=0)


def labels_of(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in LABELS}


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Everything in the folder's safetensors files."""
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return weights


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


# --- ours -> stock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("twins", "shard_size"),
    [*((twins, "1GB") for twins in TWINS), (CLASSIFIERS[0], "100KB"), (MODELS[2], "100KB")],
    ids=str,
)
def test_stock_opens_ours(twins: Twins, shard_size: str, tmp_path: Path) -> None:
    """What we save, stock Transformers loads completely, computes the same with and calls the same."""
    ours = twins.build_ours(**LABELS, **ONE_EPSILON)
    ours.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() is (shard_size == "1GB")
    stock, problems = twins.stock.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    assert type(stock) is twins.stock
    assert_same_outputs(ours, stock)
    assert labels_of(stock.config) == LABELS


@pytest.mark.parametrize("twins", MODELS, ids=str)
def test_stock_has_the_same_hidden_states_and_attentions(twins: Twins, tmp_path: Path) -> None:
    """The stages' maps, and the weights of every block's attention."""
    ours = twins.build_ours(**ONE_EPSILON)
    ours.save_pretrained(tmp_path)
    stock = twins.stock.from_pretrained(tmp_path, attn_implementation="eager")
    everything = {"output_hidden_states": True, "output_attentions": True}
    actual, expected = outputs(ours, images(), **everything), outputs(stock, images(), **everything)

    maps, attentions = expected["hidden_states"], expected["attentions"]
    if twins.family is PVT:
        # Stock PVT records tokens after every block, and once more after the final norm.
        last_blocks = [sum(ours.config.depths[: stage + 1]) - 1 for stage in range(4)]
        tokens = [maps[block] for block in last_blocks]
        tokens[-1] = tokens[-1][:, 1:]  # without the class token
        maps = [t.transpose(1, 2).unflatten(2, ours.config.grid(stage)) for stage, t in enumerate(tokens)]
    else:
        attentions = [weights for stage in attentions for weights in stage]
    assert len(actual["hidden_states"]) == 4
    assert len(actual["attentions"]) == sum(ours.config.depths)
    torch.testing.assert_close(list(actual["hidden_states"]), list(maps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(list(actual["attentions"]), list(attentions), atol=1e-5, rtol=0)


# --- stock -> ours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twins", CLASSIFIERS, ids=str)
def test_ours_opens_stock(twins: Twins, tmp_path: Path) -> None:
    """After `import hf_pvt` the Auto classes load a stock folder completely, into ours, with the same logits."""
    stock = twins.build_stock(num_labels=7)
    stock.save_pretrained(tmp_path)
    ours, problems = AutoModelForImageClassification.from_pretrained(
        tmp_path, reduction_layer_norm_eps=1e-6, output_loading_info=True
    )
    assert not any(problems.values()), problems
    assert type(ours) is twins.ours
    assert type(ours.config) is twins.family.config
    assert ours.config.num_labels == 7
    assert_same_outputs(ours, stock)

    # Without asking, the second epsilon is the published one: visible, and as small as documented.
    published = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert published.config.layer_norm_eps == 1e-6
    assert published.config.reduction_layer_norm_eps == 1e-5
    reductions = (".patch_embedding.layer_norm", ".attention.layer_norm")
    for name, module in published.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if name.endswith(reductions) else 1e-6), name
    pixel_values = images().double()
    moved = main_output(published.double(), pixel_values) - main_output(stock.double(), pixel_values)
    assert 1e-8 < moved.abs().max() < 1e-4


@pytest.mark.parametrize("twins", CLASSIFIERS[:2], ids=str)
def test_labels_of_stock_survive(twins: Twins, tmp_path: Path) -> None:
    """Names of classes, from a stock folder to ours and back; also from the older files without `num_labels`."""
    stock = twins.build_stock(**LABELS)
    stock.save_pretrained(tmp_path / "stock")
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "stock")
    assert labels_of(ours.config) == LABELS

    fields = json.loads((tmp_path / "stock/config.json").read_text())
    fields.pop("num_labels", None)
    (tmp_path / "stock/config.json").write_text(json.dumps(fields))
    assert labels_of(AutoConfig.from_pretrained(tmp_path / "stock")) == LABELS

    ours.save_pretrained(tmp_path / "ours")
    again = twins.stock.from_pretrained(tmp_path / "ours")
    assert labels_of(again.config) == LABELS
    assert_same_weights(again.state_dict(), stock.state_dict())


# --- names of the weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twins", [CLASSIFIERS[0], MODELS[0], CLASSIFIERS[1], MODELS[2]], ids=str)
def test_files_carry_the_stock_names(twins: Twins, tmp_path: Path) -> None:
    """Saving, loading and saving again, by either package, changes neither a name nor a number."""
    ours = twins.build_ours()
    ours.save_pretrained(tmp_path / "first")
    first = weights_in(tmp_path / "first")
    assert first.keys() == twins.build_stock().state_dict().keys()

    ours.save_pretrained(tmp_path / "given", state_dict=ours.state_dict())
    assert_same_weights(weights_in(tmp_path / "given"), first)

    loaded = twins.ours.from_pretrained(tmp_path / "first")
    assert_same_weights(loaded.state_dict(), ours.state_dict())
    loaded.save_pretrained(tmp_path / "second")
    assert_same_weights(weights_in(tmp_path / "second"), first)

    # Stock classes save what they always saved, after ours were used: loaded from our folder, and built anew.
    stock = twins.stock.from_pretrained(tmp_path / "second")
    assert_same_weights(stock.state_dict(), first)
    for model, folder in ((stock, tmp_path / "stock"), (twins.build_stock(), tmp_path / "anew")):
        model.save_pretrained(folder)
        assert_same_weights(weights_in(folder), model.state_dict())


@pytest.mark.parametrize("twins", [CLASSIFIERS[0], MODELS[0]], ids=str)
def test_pvt_name_tables_are_inverse(twins: Twins) -> None:
    """There and back for every weight, both ways round; the file names and shapes are exactly stock's."""
    in_memory = twins.build_ours().state_dict()
    in_file = {rename(name, MEMORY_TO_FILE): weight.shape for name, weight in in_memory.items()}
    assert len(in_file) == len(in_memory)
    stock = twins.build_stock().state_dict()
    assert in_file == {name: weight.shape for name, weight in stock.items()}
    for name in in_memory:
        assert rename(rename(name, MEMORY_TO_FILE), FILE_TO_MEMORY) == name
    for name in stock:
        assert rename(rename(name, FILE_TO_MEMORY), MEMORY_TO_FILE) == name


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("pvt_v2_b0", ".safetensors"), pytest.param("pvt_v2_b2_li", ".pth", marks=pytest.mark.slow)],
)
def test_timm_checkpoints(name: str, suffix: str, tmp_path: Path) -> None:
    """timm's PVTv2 as it is, both epsilons included: same logits at its size, at another, and in double."""
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for parameter in theirs.parameters():
        if parameter.dim() == 1:  # biases and norms, which start as zeros and ones
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / f"{name}{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    ours = hf_pvt.load_original(path)
    assert type(ours) is hf_pvt.PvtV2ForImageClassification
    assert ours.config.linear_attention is name.endswith("_li")

    with torch.no_grad():
        for height, width in ((224, 224), (96, 150)):
            pixel_values = images(height, width)[:1]
            expected = theirs(pixel_values)
            assert expected.std() > 0.05, "too small to tell anything"
            torch.testing.assert_close(ours(pixel_values).logits, expected, atol=1e-5, rtol=0)
        pixel_values = images(64, 96)[:1].double()
        torch.testing.assert_close(
            ours.double()(pixel_values).logits, theirs.double()(pixel_values), atol=1e-10, rtol=0
        )


# --- Auto classes, copies ---------------------------------------------------------------------------------------------


def build(family: Family, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class(family.tiny_config(out_indices=[0, 1, 2, 3]))
    perturb(model)
    return model.eval()


def test_auto_classes_resolve_to_ours(family: Family, tmp_path: Path) -> None:
    """From a folder and from a configuration, for the model type's name as for the files."""
    classifier = build(family, family.classifier)
    classifier.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is family.config
    assert config.to_diff_dict() == AutoConfig.for_model(**classifier.config.to_dict()).to_diff_dict()
    assert type(AutoConfig.for_model(family.name)) is family.config

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is family.classifier
    assert torch.equal(main_output(loaded), main_output(classifier))
    model = AutoModel.from_pretrained(tmp_path)
    assert type(model) is family.model
    assert torch.equal(main_output(model), main_output(classifier.base_model))

    assert type(AutoModel.from_config(config)) is family.model
    assert type(AutoModelForImageClassification.from_config(config)) is family.classifier
    backbone = AutoBackbone.from_config(config)
    assert type(backbone) is family.backbone
    trained = family.backbone.from_pretrained(tmp_path)
    backbone.load_state_dict(trained.state_dict())
    maps = outputs(backbone, images())["feature_maps"]
    hidden_states = outputs(classifier, images(), output_hidden_states=True)["hidden_states"]
    assert len(maps) == 4
    # Ours has no class token inside detectors and segmenters, so PVT's last stage differs there.
    count = 3 if family is PVT else 4
    torch.testing.assert_close(list(maps[:count]), list(hidden_states[:count]), atol=0, rtol=0)


def test_auto_image_processor_is_the_published_evaluation(tmp_path: Path) -> None:
    """The saved processor comes back from beside a model, and makes the same pixels."""
    build(PVT, PVT.classifier).save_pretrained(tmp_path)
    processor = hf_pvt.classification_image_processor(64)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    assert loaded.to_dict() == processor.to_dict()
    photo = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    expected = processor(photo, return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 3, 64, 64)
    assert torch.equal(loaded(photo, return_tensors="pt")["pixel_values"], expected)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize(
    ("family", "duplicate"),
    [(PVT, pickled), (P2T, pickled), (PVT, copy.deepcopy), (PVT_V2, copy.deepcopy), (P2T, copy.deepcopy)],
    ids=["pvt-pickle", "p2t-pickle", "pvt-deepcopy", "pvt_v2-deepcopy", "p2t-deepcopy"],
)
def test_copies(family: Family, duplicate: Callable[[Any], Any], tmp_path: Path) -> None:
    """Copies of configurations and models, built or loaded, say the same and have their own memory."""
    # Transformers hangs closures on every backbone that records hidden states (Swin's too): pickle refuses those.
    for model_class in family.classes if duplicate is copy.deepcopy else (family.model, family.classifier):
        model = build(family, model_class)
        model.save_pretrained(tmp_path / model_class.__name__)
        for original in (model, model_class.from_pretrained(tmp_path / model_class.__name__)):
            config = duplicate(original.config)
            assert type(config) is family.config
            assert config.to_dict() == original.config.to_dict()
            twin = duplicate(original)
            assert type(twin) is model_class
            expected = main_output(original)
            assert torch.equal(main_output(twin), expected)
            perturb(twin)
            assert not torch.equal(main_output(twin), expected)
            assert torch.equal(main_output(original), expected)


# --- where this package is missing ------------------------------------------------------------------------------------

WITHOUT_PACKAGE = '''
"""Open folders where hf_pvt cannot be imported, and write down what is found there."""
import sys
from pathlib import Path

sys.modules["hf_pvt"] = None
import torch
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

task = torch.load(sys.argv[1], weights_only=True)
found = {}


def note(name, model, problems=None):
    with torch.no_grad():
        values = model.eval()(task["images"])
    found[name] = {
        "class": (type(model).__module__, type(model).__qualname__),
        "config": (type(model.config).__module__, type(model.config).__qualname__),
        "problems": {kind: sorted(keys) for kind, keys in (problems or {}).items()},
        "labels": {name: getattr(model.config, name) for name in task["labels"]},
        "output": values["feature_maps"] if "feature_maps" in values else values[0],
    }


for name, folder in task["stock"].items():
    note(name, *AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True))

try:
    AutoModel.from_pretrained(task["remote"], trust_remote_code=False)
except ValueError as error:
    found["refusal"] = str(error)

trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(task["remote"], **trust)
note("model", *AutoModel.from_pretrained(task["remote"], output_loading_info=True, **trust))
backbone_class = type(AutoBackbone.from_config(config, **trust))
note("backbone", *backbone_class.from_pretrained(task["remote"], output_loading_info=True))
classifier, problems = AutoModelForImageClassification.from_pretrained(
    task["remote"], output_loading_info=True, **trust
)
note("classifier", classifier, problems)
classifier.save_pretrained(task["again"])
note("again", *AutoModelForImageClassification.from_pretrained(task["again"], output_loading_info=True, **trust))

assert not any(Path(module.__file__).parent.name == "hf_pvt" for module in sys.modules.values()
               if getattr(module, "__file__", None))
torch.save(found, sys.argv[2])
'''


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The models saved here, and what a process without this package and without a network finds in the folders."""
    folder = tmp_path_factory.mktemp("elsewhere")
    models = {str(twins.family): twins.build_ours(**LABELS, **ONE_EPSILON) for twins in CLASSIFIERS}
    torch.manual_seed(0)
    models["p2t"] = P2T.classifier(P2T.tiny_config(out_indices=[0, 1, 2, 3], **LABELS)).eval()
    perturb(models["p2t"])
    for name, model in models.items():
        model.save_pretrained(folder / name)
    task = {
        "images": images(),
        "labels": list(LABELS),
        "stock": {name: str(folder / name) for name in models if name != "p2t"},
        "remote": str(folder / "p2t"),
        "again": str(folder / "again"),
    }
    torch.save(task, folder / "task.pt")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, str(folder / "task.pt"), str(folder / "found.pt")],
        env={**os.environ, "HF_HOME": str(folder / "hf_home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return {"folder": folder, "models": models, "found": torch.load(folder / "found.pt", weights_only=True)}


@pytest.mark.processes
@pytest.mark.parametrize("twins", CLASSIFIERS, ids=str)
def test_stock_opens_ours_elsewhere(twins: Twins, elsewhere: dict[str, Any]) -> None:
    """Plain Auto classes, where this package is not installed, open our folders with Transformers' own classes."""
    name = str(twins.family)
    found = elsewhere["found"][name]
    assert found["class"] == (twins.stock.__module__, twins.stock.__qualname__)
    assert found["config"] == (twins.stock_config.__module__, twins.stock_config.__qualname__)
    assert not any(found["problems"].values()), found["problems"]
    assert found["labels"] == LABELS
    expected = main_output(elsewhere["models"][name])
    torch.testing.assert_close(found["output"], expected, atol=1e-5, rtol=0)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["model", "backbone", "classifier", "again"])
def test_p2t_brings_its_code(name: str, elsewhere: dict[str, Any]) -> None:
    """A P2T folder opens where nobody knows P2T, by its own code; and once more after it was saved there."""
    found = elsewhere["found"][name]
    module, class_name = found["class"]
    assert module.startswith("transformers_modules.") and module.endswith(".modeling_p2t")
    expected_class = {"model": P2T.model, "backbone": P2T.backbone}.get(name, P2T.classifier)
    assert class_name == expected_class.__name__
    assert found["config"][0].endswith(".configuration_p2t") and found["config"][1] == "P2tConfig"
    assert not any(found["problems"].values()), found["problems"]
    assert found["labels"] == LABELS
    ours = expected_class.from_pretrained(elsewhere["folder"] / "p2t")
    values = outputs(ours, images())
    expected = values["feature_maps"] if name == "backbone" else main_output(ours)
    torch.testing.assert_close(found["output"], expected, atol=1e-6, rtol=0)


@pytest.mark.processes
def test_p2t_is_refused_without_trust(elsewhere: dict[str, Any]) -> None:
    """Code from a folder runs for those who allow it, and the refusal says how."""
    assert "trust_remote_code=True" in elsewhere["found"]["refusal"]


@pytest.mark.processes
def test_p2t_saved_elsewhere_is_the_same_folder(elsewhere: dict[str, Any]) -> None:
    """Weights, configuration and every file of code; and this package opens it with its own class."""
    first, again = elsewhere["folder"] / "p2t", elsewhere["folder"] / "again"
    files = {path.name for path in first.iterdir()}
    assert files == {path.name for path in again.iterdir()}
    assert {"modeling_p2t.py", "configuration_p2t.py", "layers.py"} <= files
    for name in files:
        if name == "model.safetensors":
            assert_same_weights(weights_in(again), weights_in(first))
        else:
            assert (again / name).read_text() == (first / name).read_text(), name
    loaded = AutoModelForImageClassification.from_pretrained(again)
    assert type(loaded) is P2T.classifier
    assert torch.equal(main_output(loaded), main_output(elsewhere["models"]["p2t"]))
