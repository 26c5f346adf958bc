"""Saved folders that carry their own code, for what Transformers does not have.

`AutoModel.from_pretrained(folder, trust_remote_code=True)` then works where this package is not installed. Where it is
imported, its registered classes win over the folder's.
"""

import os
import shutil
import sys
from pathlib import Path

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

# Auto class -> how the classes of a family are called after the family's name.
AUTO_CLASS_SUFFIXES = {
    "AutoModel": "Model",
    "AutoBackbone": "Backbone",
    "AutoModelForImageClassification": "ForImageClassification",
    "AutoModelForSemanticSegmentation": "ForSemanticSegmentation",
}


def remote_auto_map(model: PreTrainedModel) -> dict[str, str]:
    """The `auto_map` of config.json: all classes of `model`'s family.

    The configuration has to come with the models: whoever trusts the folder gets its configuration class, with which
    Transformers' own models are not registered. Whoever does not still gets those that Transformers has.
    """
    modeling = type(model).__module__.rpartition(".")[2]
    configuration = modeling.replace("modeling", "configuration")
    config_class = type(model.config).__name__
    family = config_class.removesuffix("Config")
    return {
        "AutoConfig": f"{configuration}.{config_class}",
        **{auto_class: f"{modeling}.{family}{suffix}" for auto_class, suffix in AUTO_CLASS_SUFFIXES.items()},
    }


def write_remote_code(instance: object, save_directory: str | os.PathLike[str]) -> None:
    """Copy the module of `instance`'s class, and all siblings that it imports, into the folder."""
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    module = sys.modules[type(instance).__module__].__file__
    assert module is not None
    for file in (module, *get_relative_import_files(module)):
        shutil.copy(file, folder / Path(file).name)
