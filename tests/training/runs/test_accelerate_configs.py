"""The configurations of accelerate and the SLURM script; sharding by block, as FSDP2 does it, on two CPU processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from families import FAMILIES
from paths import ROOT, SUPPORT

from hf_pvt.pyramid.modeling_pyramid import PyramidPreTrainedModel

CONFIGS = ROOT / "examples" / "configs"
SBATCH = ROOT / "examples" / "slurm" / "train.sbatch"

EXPECTED: dict[str, dict[str, Any]] = {
    "cpu": {"distributed_type": "NO", "use_cpu": True, "num_processes": 1, "mixed_precision": "no"},
    "one_gpu": {"distributed_type": "NO", "use_cpu": False, "num_processes": 1, "mixed_precision": "bf16"},
    "multi_gpu": {"distributed_type": "MULTI_GPU", "use_cpu": False, "num_processes": 8, "mixed_precision": "bf16"},
    "fsdp2": {"distributed_type": "FSDP", "use_cpu": False, "num_processes": 8, "mixed_precision": "bf16"},
    "deepspeed_zero2": {
        "distributed_type": "DEEPSPEED", "use_cpu": False, "num_processes": 8, "mixed_precision": "bf16"
    },
}  # fmt: skip


def test_every_config_is_known() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == set(EXPECTED)


def test_accelerate_reads() -> None:
    for name, expected in EXPECTED.items():
        config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
        assert {field: getattr(config, field) for field in expected} == expected, name
        assert config.num_machines == 1, name


def test_fsdp2_wraps_the_block() -> None:
    """What is sharded and checkpointed together is the block, by its class's name; the file's keys are the launcher's.

    Accelerate sets whatever key a file has, a misspelt one too.
    """
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2
    assert [config["fsdp_transformer_layer_cls_to_wrap"]] == PyramidPreTrainedModel._no_split_modules
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for name in ("fsdp2", "deepspeed_zero2"):
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        nested = content.get("fsdp_config", {}) | content.get("deepspeed_config", {})
        assert nested.keys() <= known.keys()


def test_deepspeed_is_zero_2() -> None:
    parser = launch_command_parser()
    config_file = str(CONFIGS / "deepspeed_zero2.yaml")
    arguments, _, _ = _validate_launch_command(parser.parse_args(["--config_file", config_file, "script.py"]))
    assert arguments.use_deepspeed
    assert (arguments.zero_stage, arguments.gradient_accumulation_steps) == (2, "auto")


SHARD = """
import json, sys
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from families import FAMILIES, perturb
from hf_pvt.pyramid.pyramid import PyramidBlock

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
targets = {"classifier": torch.arange(4), "segmenter": torch.arange(4 * 64 * 64).view(4, 64, 64) % 5}
mine = slice(2 * rank, 2 * rank + 2)


def build(family, role):
    torch.manual_seed(1)
    model = getattr(family, role)(family.tiny_config(drop_path_rate=0.0, classifier_dropout_prob=0.0)).train()
    perturb(model)
    return model


def train(model, images, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(images, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


trained = {}
for family in FAMILIES:
    for role, labels in targets.items():
        model = build(family, role)
        blocks = [module for module in model.modules() if isinstance(module, PyramidBlock)]
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh)
            module.set_force_sum_reduction_for_comms(True)  # gloo takes a mean for a sum in PyTorch 2.8
        local = sum(parameter.to_local().numel() for block in blocks for parameter in block.parameters())
        whole = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        train(model, images[mine], labels[mine])
        units = sum(isinstance(block, FSDPModule) for block in blocks) / len(blocks)
        weights = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
        trained[family.name, role] = (weights, units, local / whole)
dist.barrier()  # one that leaves early breaks the other's connection
dist.destroy_process_group()
if rank == 0:
    report = {}
    for family in FAMILIES:
        for role, labels in targets.items():
            weights, units, share = trained[family.name, role]
            start = dict(build(family, role).named_parameters())
            model = build(family, role)
            train(model, images, labels)
            joint = dict(model.named_parameters())
            report[f"{family.name} {role}"] = {
                "difference": max((weights[name] - joint[name]).abs().max().item() for name in joint),
                "moved": min((start[name] - joint[name]).abs().max().item() for name in joint if "mlp" in name),
                "names": list(weights) == list(joint),
                "units": units,
                "share": share,
            }
    print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.processes
def test_sharded_by_block(tmp_path: Path) -> None:
    """Two processes hold half of every block each, and train to the weights of one with the joint batch."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARD, str(tmp_path), str(rank)], cwd=SUPPORT, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    report = json.loads(outputs[0].splitlines()[-1])  # gloo may speak before
    assert report.keys() == {f"{family} {role}" for family in FAMILIES for role in ("classifier", "segmenter")}
    for result in report.values():
        assert result["difference"] < 1e-5 < result["moved"]
        assert result["names"]
        assert result["units"] == 1  # every block is gathered and given back on its own
        assert 0.5 <= result["share"] < 0.52


STANDINS = {
    "scontrol": 'echo "$FIRST_NODE"; echo another-node',
    # Two nodes on this machine.
    "srun": 'shift; SLURM_NODEID=0 "$@" & first=$!; SLURM_NODEID=1 "$@" && wait $first',
}
WHO = """
import os, sys
from pathlib import Path
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
found = " ".join(map(str, [accelerator.num_processes, *sys.argv[1:]]))
Path(os.environ["WHO"], f"process-{accelerator.process_index}").write_text(found)
"""


@pytest.mark.processes
def test_sbatch_starts_a_process_on_each_node(tmp_path: Path) -> None:
    """The script under SLURM's variables, its commands replaced: two launchers of accelerate find each other."""
    subprocess.run(["bash", "-n", SBATCH], check=True)
    for name, body in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "who.py").write_text(WHO)
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2"}
    environment = {
        **os.environ,
        **job,
        "SLURM_GPUS_ON_NODE": "1",
        "FIRST_NODE": "127.0.0.1",
        "ACCELERATE_USE_CPU": "true",
        "WHO": str(tmp_path),
        "PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = ["bash", str(SBATCH), str(tmp_path / "who.py"), "--output_dir", "a folder"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = {path.name: path.read_text() for path in tmp_path.glob("process-*")}
    assert found == dict.fromkeys(("process-0", "process-1"), "2 --output_dir a folder")
