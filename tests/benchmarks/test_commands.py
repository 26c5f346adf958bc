"""The benchmarks compute the same function, say why a cell is empty, and lose nothing that was measured before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from benchmarks import growth, profile, results, runtimes, tables, training
from benchmarks.candidates import CANDIDATES, lacking, missing, ours_config, runs_here, timm_model
from benchmarks.models import CASES, MODELS, SEMANTIC_FPN, gmacs, ours
from hf_pvt import VARIANTS

PROCESSOR = {"name": "Some CPU @ 2 GHz", "family": "6", "model": "7", "flags": ["avx2"], "threads": 2}
RUN = {"versions": {"torch": "1.0"}, "rounds": 2, "rates": {"float32": 2e11, "bfloat16": 4e11}}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_peers_are_the_same_models() -> None:
    """As many parameters as the published variants have, in every library."""
    with torch.device("meta"):
        for name in ("pvt-v2-b0", "pvt-v2-b2", "pvt-v2-b2-li"):
            assert parameters(timm_model(name)) == parameters(ours(name)) == VARIANTS[name].parameters
            config = transformers.PvtV2Config(**ours_config(name))
            assert parameters(transformers.PvtV2ForImageClassification(config)) == VARIANTS[name].parameters
        config = transformers.PvtConfig(**ours_config("pvt-small"))
        assert parameters(transformers.PvtForImageClassification(config)) == VARIANTS["pvt-small"].parameters
        assert parameters(ours("p2t-small")) == VARIANTS["p2t-small"].parameters
    assert gmacs("pvt-v2-b0", 224) == pytest.approx(VARIANTS["pvt-v2-b0"].gmacs_224, abs=1e-3)


@pytest.mark.parametrize(
    "candidate", ["packed", "not packed", "timm channels-last bf16", "packed bf16", "transformers"]
)
def test_candidates(candidate: str) -> None:
    """Each takes float32 images of any size and gives logits in its own type, or says that this processor cannot."""
    torch.manual_seed(0)
    if not runs_here(candidate):
        with pytest.raises(RuntimeError, match=r"this processor has no torch\.bfloat16 for packed models"):
            CANDIDATES[candidate].build("pvt-v2-b0", 64, 2)
        return
    forward = CANDIDATES[candidate].build("pvt-v2-b0", 64, 2)
    with torch.inference_mode():
        output = forward(torch.randn(2, 3, 64, 64))
    logits = getattr(output, "logits", output)
    assert logits.shape == (2, 1000) and logits.std() > 0
    assert logits.dtype == getattr(torch, CANDIDATES[candidate].dtype)


def test_what_is_missing() -> None:
    assert missing("timm", "p2t-small", 224) == missing("timm compiled", SEMANTIC_FPN, 224)
    assert "position embeddings" in str(missing("transformers", "pvt-small", 512))
    assert missing("transformers", "pvt-small", 224) is None
    for model in MODELS:  # growth and memory are known for all
        assert {missing("packed", model, size) for size, _ in CASES} == {None}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "SPEED", tmp_path)
    return tmp_path


def samples(*seconds: float) -> list[dict[str, float]]:
    return [{"seconds": each, "faults": 3, "extra_mib": 7.4} for each in seconds]


def filled(size: int = 224, batch: int = 1) -> results.Results:
    """Results of one case of PVTv2-B0: 1 GMAC an image."""
    measured = results.load(PROCESSOR)
    measured["runs"]["first"] = RUN
    measured["gmacs"] = {"pvt-v2-b0": {"224": 1.0, "512": 5.0}}
    case = results.case_of(measured, "pvt-v2-b0", size, batch)
    results.record(case, "packed", "first", samples(0.010, 0.020))
    results.record(case, "onnxruntime", "first", samples(0.020, 0.030))
    return measured


def test_merging(folder: Path) -> None:
    """A second run replaces what it measured, and nothing else; a run of which nothing is left goes."""
    results.save(filled())
    again = results.load(PROCESSOR)
    again["runs"] |= {"second": RUN, "third": RUN}
    results.record(results.case_of(again, "pvt-v2-b0", 512, 1), "packed", "second", samples(0.05))
    results.record(results.case_of(again, "pvt-v2-b0", 224, 1), "packed", "third", samples(0.04))
    results.record(results.case_of(again, "pvt-v2-b0", 224, 1), "packed", "second", samples(0.05))
    results.save(again)
    assert [path.name for path in folder.iterdir()] == ["some-cpu-family-6-model-7-threads-2.json"]
    (read,) = results.load_all()
    cases = read["cases"]["pvt-v2-b0"]
    assert cases["224, 1"]["packed"] == {"run": "second", "seconds": [0.05], "faults": [3], "extra_mib": [7.4]}
    assert cases["224, 1"]["onnxruntime"]["seconds"] == [0.02, 0.03]
    assert cases["512, 1"]["packed"]["seconds"] == [0.05]
    assert set(read["runs"]) == {"first", "second"}


def test_ratios(folder: Path) -> None:
    """Rounds are paired within a run; of two runs, and of one round, there is no range."""
    case = results.case_of(filled(), "pvt-v2-b0", 224, 1)
    assert results.ratio(case, "onnxruntime", "packed") == "1.75 (1.50-2.00)"
    results.record(case, "onnxruntime", "second", samples(0.03))
    assert results.ratio(case, "onnxruntime", "packed") == "2.00"
    results.record(case, "packed", "second", samples(0.02))
    assert results.ratio(case, "onnxruntime", "packed") == "1.50"


def test_tables(folder: Path) -> None:
    """Milliseconds, ratios, the limit (2 GFLOP at 200 GFLOP/s), and a letter for each reason."""
    table = tables.time_table(filled(), MODELS, "float32")
    header, _, row, _, notes = table.splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["size, batch"] == "224, 1" and cells["packed, ms"] == "15"
    assert cells["ONNX Runtime"] == "1.75 (1.50-2.00)" and cells["packed / limit |"] == "1.50 |"
    assert cells["timm"] == "– (a)" and cells["timm compiled"] == "– (b)"
    assert notes.startswith("(a) not measured yet; (b) not timed: each size of each model")
    memory = tables.memory_table(filled(), MODELS).splitlines()[2]
    assert memory.startswith("| `pvt-v2-b0` | 224, 1 | 7 |")
    assert tables.origin(filled()) == "2 threads, Some CPU @ 2 GHz (family 6, model 7; avx2); torch 1.0"


def test_exponents() -> None:
    assert growth.exponent({size: 3e-9 * size**2.5 for size in growth.SIZES}) == pytest.approx(1.25)
    assert growth.exponent_cell({1024: 1.0, 2048: 8.0, 512: 0.5}, (1024, 2048)) == "1.50"
    assert growth.exponent_cell({1024: 1.0}, (1024, 2048)) == "–"


def test_plot(folder: Path, tmp_path: Path) -> None:
    """The same numbers are the same file, to the byte; each model that was measured has a line."""
    measured: Any = filled()
    case = results.case_of(measured, "pvt-v2-b0", 512, 1)
    results.record(case, "packed", "first", samples(0.1, 0.1))
    for name in ("one.svg", "two.svg"):
        growth.plot([measured], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "pvt-v2-b0" in (tmp_path / "one.svg").read_text() and "p2t" not in (tmp_path / "one.svg").read_text()


def test_recorded_results() -> None:
    """What is recorded is of models, sizes and candidates that there are, and of as many rounds as its run had."""
    for recorded in results.load_all():
        assert json.loads(results.file_of(recorded["processor"]).read_text()) == recorded
        for model, cases in recorded["cases"].items():
            for name, case in cases.items():
                assert model in MODELS and name in {results.case_name(*size_and_batch) for size_and_batch in CASES}
                for candidate, measured in case.items():
                    assert missing(candidate, model, int(name.split(",")[0])) is None
                    assert len(measured["seconds"]) == recorded["runs"][measured["run"]]["rounds"]
        for model, cases in recorded["training"].items():
            sizes = {case.name: case.size for case in training.CASES[model]}
            for name, case in cases.items():
                for candidate, measured in case.items():
                    assert candidate in training.CANDIDATES and lacking(candidate, model, sizes[name]) is None
                    assert len(measured["seconds"]) == recorded["runs"][measured["run"]]["rounds"]


def test_training_step() -> None:
    """Ours and each of its peers trains, from end to end; all models, and with our own heap, in `machine`."""
    case = training.Case(32, 2, "bfloat16", checkpointing=True)
    for candidate in training.CANDIDATES[1:]:
        step, trained = training.training_step(candidate, "pvt-v2-b0", case)
        first, *_, last = trained.parameters()
        before = first.detach().clone(), last.detach().clone()
        step()
        assert not first.equal(before[0]) and not last.equal(before[1]), candidate


def test_training_table(folder: Path) -> None:
    """A line for each case; the letters say why peers lack one."""
    measured = results.load(PROCESSOR)
    measured["runs"]["first"] = RUN
    case = training.CASES["p2t-small"][0]
    numbers = measured["training"].setdefault("p2t-small", {}).setdefault(case.name, {})
    results.record(numbers, "ours", "first", samples(0.5, 0.7))
    results.record(numbers, "ours, default heap", "first", samples(1.0, 0.7))
    results.save(measured)
    (measured,) = results.load_all()
    header, _, row, _, notes = training.training_table(measured, MODELS).splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["size, batch, type"] == "224, 8, float32" and cells["ours, ms"] == "600"
    assert cells["ours, default heap"] == "1.50 (1.00-2.00)" and cells["page faults, ours"] == "3"
    assert cells["timm"] == cells["MiB, timm"] == "– (a)" and cells["Transformers"] == "– (b)"
    assert notes == f"(a) {lacking('timm', 'p2t-small', 224)}; (b) {lacking('transformers', 'p2t-small', 224)}"
    assert tables.origin(measured, "training").endswith("torch 1.0")


def test_profile_table(folder: Path) -> None:
    """Operators by kind and what is beside them, in milliseconds."""
    names = {"mkldnn::_linear_pointwise": "linears", "aten::mkldnn_convolution": "convolutions", "aten::add": "other"}
    names |= {"aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention", "aten::gelu_": "activations"}
    for name, kind in names.items():
        assert profile.kind(name).startswith(kind)
    recorded = results.load(PROCESSOR)
    case = recorded["profile"].setdefault(profile.MODEL, {}).setdefault("224, 1", {})
    results.record(case, "packed", "first", [dict.fromkeys(("seconds", *profile.COLUMNS), 0.0125)])
    row = profile.profile_table(recorded).splitlines()[2]
    assert row == "| packed: 224, 1 | " + " | ".join(["12.5"] * (1 + len(profile.COLUMNS))) + " |"


def test_runtimes() -> None:
    """Ratios of paired rounds; every candidate of the recorded run has as many as it says."""
    seconds = {"224": {name: [0.02, 0.04] for name in runtimes.CANDIDATES}}
    seconds["224"]["int8"] = [0.01, 0.03]
    header, _, row = runtimes.table({"samples": {"pvt-v2-b0": seconds}}).splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["PyTorch, ms"] == "30" and cells["ONNX Runtime, int8"] == "0.62" and cells["packed"] == "1.00"
    recorded = json.loads((results.RESULTS / "runtimes.json").read_text())
    assert set(recorded["samples"]) == set(runtimes.VARIANTS)
    for sizes in recorded["samples"].values():
        assert set(sizes) == {str(size) for size in runtimes.SIZES}
        for samples_of_size in sizes.values():
            assert set(samples_of_size) == set(runtimes.CANDIDATES)
            assert {len(times) for times in samples_of_size.values()} == {recorded["rounds"]}
