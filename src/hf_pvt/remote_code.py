"""Saved folders that carry their own code, for what Transformers does not have.

`AutoModel.from_pretrained(folder, trust_remote_code=True)` then works where this package is not installed. Where it is
imported, its registered classes win over the folder's.

A class that somebody derived from one of ours stands in a script or a notebook, which may hold anything: nothing of it
is copied here. Transformers copies it where it was registered for that (`register_for_auto_class`).
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

PACKAGE = __name__.rpartition(".")[0]
RELATIVE_IMPORT = re.compile(r"^from (\.+)([\w.]+) import", re.MULTILINE)

# Auto class -> how the classes of a family are called after the family's name.
AUTO_CLASS_SUFFIXES = {
    "AutoModel": "Model",
    "AutoBackbone": "Backbone",
    "AutoModelForImageClassification": "ForImageClassification",
    "AutoModelForSemanticSegmentation": "ForSemanticSegmentation",
}


class RemoteCodeMixin:
    """A class whose saved folders carry its code."""

    _auto_class: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Not registered, whatever was registered above: Transformers would copy the file of whoever derives."""
        super().__init_subclass__(**kwargs)
        if "_auto_class" not in vars(cls):
            cls._auto_class = None

    def class_to_carry(self) -> Any:
        """The class of this package whose code the folder carries; None for a class from elsewhere, which is said."""
        # FSDP puts a class of its own before the model's.
        own = next(cls for cls in type(self).__mro__ if not cls.__module__.startswith("torch."))
        if own.__module__.startswith(f"{PACKAGE}."):
            return own
        if self._auto_class is None:
            name = own.__name__
            logger.warning(
                f"{name} is defined outside of this package, in {own.__module__}: the folder carries no code and no "
                f"auto_map. Open it with {name}.from_pretrained, or call {name}.register_for_auto_class before saving, "
                "which copies the file that defines it."
            )
        return None


def family_classes(model_class: Any) -> dict[str, str]:
    """The names of the classes of a model's family, by their Auto classes."""
    family = model_class.config_class.__name__.removesuffix("Config")
    return {auto_class: f"{family}{suffix}" for auto_class, suffix in AUTO_CLASS_SUFFIXES.items()}


def remote_auto_map(model_class: Any, classes: Mapping[str, str]) -> dict[str, str]:
    """The `auto_map` of config.json, for `classes` of the model's module by their Auto classes.

    The configuration has to come with the models: whoever trusts the folder gets its configuration class, with which
    Transformers' own models are not registered. Whoever does not still gets those that Transformers has.
    """
    modeling = model_class.__module__.rpartition(".")[2]
    configuration = modeling.replace("modeling", "configuration")
    return {
        "AutoConfig": f"{configuration}.{model_class.config_class.__name__}",
        **{auto_class: f"{modeling}.{name}" for auto_class, name in classes.items()},
    }


def write_remote_code(carried: type, save_directory: str | os.PathLike[str]) -> None:
    """Copy the module of a class of this package, and all modules of the package that it imports, into the folder.

    Transformers runs a flat folder only: the modules of all folders become siblings, so that no two have one name.
    """
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    module = sys.modules[carried.__module__].__file__
    assert module is not None
    waiting, written = [Path(module)], set()
    while waiting:
        file = waiting.pop()
        if file in written:
            continue
        written.add(file)
        code = file.read_text(encoding="utf-8")
        for dots, module_path in RELATIVE_IMPORT.findall(code):
            waiting.append(file.parents[len(dots) - 1].joinpath(*module_path.split(".")).with_suffix(".py"))
        flat = RELATIVE_IMPORT.sub(lambda found: f"from .{found[2].rpartition('.')[2]} import", code)
        (folder / file.name).write_text(flat, encoding="utf-8")
