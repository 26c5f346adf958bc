"""The names of PVT's weights in files, which are Transformers' own, and in memory, which are the skeleton's.

So Transformers' PVT reads our files and ours reads its. The renaming is local to our classes: registering a conversion
with Transformers would be shorter, but it is global and would change what Transformers' own classes save.

Both tables are applied in order, as `re.sub`.
"""

import re

FILE_TO_MEMORY = {
    r"encoder\.patch_embeddings\.(\d+)\.projection\.": r"encoder.layers.\1.patch_embedding.proj.",
    r"encoder\.patch_embeddings\.(\d+)\.": r"encoder.layers.\1.patch_embedding.",
    r"encoder\.block\.(\d+)\.": r"encoder.layers.\1.blocks.",
    r"attention\.self\.sequence_reduction\.": r"attention.spatial_reduction.",
    r"attention\.output\.dense\.": r"attention.proj.",
    r"attention\.self\.": r"attention.",
}

MEMORY_TO_FILE = {
    r"encoder\.layers\.(\d+)\.patch_embedding\.proj\.": r"encoder.patch_embeddings.\1.projection.",
    r"encoder\.layers\.(\d+)\.patch_embedding\.": r"encoder.patch_embeddings.\1.",
    r"encoder\.layers\.(\d+)\.blocks\.": r"encoder.block.\1.",
    r"attention\.spatial_reduction\.": r"attention.sequence_reduction.",
    r"attention\.proj\.": r"attention.output.dense.",
    r"attention\.(?!output\.)": r"attention.self.",
}


def rename(name: str, table: dict[str, str]) -> str:
    """`name` in the other convention."""
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name
