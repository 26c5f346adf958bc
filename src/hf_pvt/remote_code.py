"""Saved folders that carry their own code, for model types that Transformers does not know.

`AutoModel.from_pretrained(folder, trust_remote_code=True)` then works where this package is not installed. Where it is
imported, its registered classes win over the folder's.
"""

import os
import shutil
import sys
from pathlib import Path

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files


def write_remote_code(model: PreTrainedModel, save_directory: str | os.PathLike[str]) -> None:
    """Copy the module of `model`'s class, and all siblings that it imports, into the folder."""
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    module = sys.modules[type(model).__module__].__file__
    assert module is not None
    for file in (module, *get_relative_import_files(module)):
        shutil.copy(file, folder / Path(file).name)
