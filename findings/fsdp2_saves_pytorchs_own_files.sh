#!/usr/bin/env bash
# transformers 5.24.0, torch 2.14.1: a model with code of its own (register_for_auto_class), sharded with PyTorch's
# FSDP2, is saved with PyTorch's private modules beside the weights and an auto_map that names them.
#
# `fully_shard` gives the model a class that torch.distributed.fsdp makes for it; `save_pretrained` copies the module of
# the class that it sees, and all that this imports. config.json's `architectures` is right, its `auto_map` is not, and
# AutoModel.from_pretrained(folder, trust_remote_code=True) fails. One process is enough, and so is a linear layer.
# Way round: correct `auto_map` after saving, and delete the `_fsdp_*.py`; or save from an unwrapped copy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.14.1 transformers==5.24.0

cat > tiny_model.py <<'PYTHON'
import torch
from transformers import PreTrainedConfig, PreTrainedModel


class TinyConfig(PreTrainedConfig):
    model_type = "tiny"


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(4, 4)
        self.post_init()

    def forward(self, x):
        return self.linear(x)
PYTHON

cat > save.py <<'PYTHON'
import json
from pathlib import Path

import torch.distributed as dist
from tiny_model import TinyConfig, TinyModel
from torch.distributed.fsdp import fully_shard

TinyConfig.register_for_auto_class()
TinyModel.register_for_auto_class("AutoModel")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = TinyModel(TinyConfig())
weights = {name: weight.clone() for name, weight in model.state_dict().items()}
for folder in ("plain", "sharded"):
    if folder == "sharded":
        fully_shard(model)
    model.save_pretrained(folder, state_dict=weights)
    config = json.loads(Path(folder, "config.json").read_text())
    files = sorted(path.name for path in Path(folder).glob("*.py"))
    print(folder, config["architectures"], config["auto_map"]["AutoModel"], files)
dist.destroy_process_group()
PYTHON

venv/bin/python save.py 2> /dev/null | tee seen
# Output seen:
cat > expected <<'TEXT'
plain ['TinyModel'] tiny_model.TinyModel ['tiny_model.py']
sharded ['TinyModel'] _fsdp_init.FSDPTinyModel ['_fsdp_api.py', '_fsdp_collectives.py', '_fsdp_common.py', '_fsdp_init.py', '_fsdp_param.py', '_fsdp_param_group.py', '_fsdp_state.py', 'tiny_model.py']
TEXT
diff expected seen && echo "as found"
