"""Saved folders that carry their own code, for what Transformers does not have.

`AutoModel.from_pretrained(folder, trust_remote_code=True)` then works where this package is not installed. Where it is
imported, its registered classes win over the folder's.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

RELATIVE_IMPORT = re.compile(r"^from (\.+)(\w+) import", re.MULTILINE)

# Auto class -> how the classes of a family are called after the family's name.
AUTO_CLASS_SUFFIXES = {
    "AutoModel": "Model",
    "AutoBackbone": "Backbone",
    "AutoModelForImageClassification": "ForImageClassification",
    "AutoModelForSemanticSegmentation": "ForSemanticSegmentation",
}


def family_classes(model: PreTrainedModel) -> dict[str, str]:
    """The names of the classes of `model`'s family, by their Auto classes."""
    family = type(model.config).__name__.removesuffix("Config")
    return {auto_class: f"{family}{suffix}" for auto_class, suffix in AUTO_CLASS_SUFFIXES.items()}


def remote_auto_map(model: PreTrainedModel, classes: Mapping[str, str]) -> dict[str, str]:
    """The `auto_map` of config.json, for `classes` of `model`'s module by their Auto classes.

    The configuration has to come with the models: whoever trusts the folder gets its configuration class, with which
    Transformers' own models are not registered. Whoever does not still gets those that Transformers has.
    """
    modeling = type(model).__module__.rpartition(".")[2]
    configuration = modeling.replace("modeling", "configuration")
    return {
        "AutoConfig": f"{configuration}.{type(model.config).__name__}",
        **{auto_class: f"{modeling}.{name}" for auto_class, name in classes.items()},
    }


def write_remote_code(instance: object, save_directory: str | os.PathLike[str]) -> None:
    """Copy the module of `instance`'s class, and all modules of the package that it imports, into the folder.

    Transformers runs a flat folder only: what `detection` imports of the package above it becomes a sibling.
    """
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    module = sys.modules[type(instance).__module__].__file__
    assert module is not None
    waiting, written = [Path(module)], set()
    while waiting:
        file = waiting.pop()
        if file in written:
            continue
        written.add(file)
        code = file.read_text(encoding="utf-8")
        for dots, name in RELATIVE_IMPORT.findall(code):
            waiting.append(file.parents[len(dots) - 1] / f"{name}.py")
        (folder / file.name).write_text(RELATIVE_IMPORT.sub(r"from .\2 import", code), encoding="utf-8")
