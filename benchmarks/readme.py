"""The tables of the README, rendered from the variants and from the results of the benchmarks.

python -m benchmarks.readme
"""

import json
import re
from pathlib import Path

from hf_pvt import VARIANTS

from .forward import RESULTS, table

README = Path(__file__).parent.parent / "README.md"


def variants_table() -> str:
    """All published variants: size and reported accuracy."""
    header = ["variant", "parameters, M", "GMACs at 224", "ImageNet top-1, % (reported)"]
    header += ["Semantic FPN: parameters, M", "GMACs at 512", "ADE20K mIoU, % (reported)", "licence of the weights"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for name, variant in VARIANTS.items():
        cells = [f"`{name}`", f"{variant.parameters / 1e6:.1f}", f"{variant.gmacs_224:.2f}"]
        cells += [f"{variant.top1_reported:.1f}", f"{variant.fpn_parameters / 1e6:.1f}"]
        cells += [f"{variant.fpn_gmacs_512:.1f}", f"{variant.miou_reported:.1f}", variant.license]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def forward_table() -> str:
    """The last run of `benchmarks.forward`."""
    results = json.loads((RESULTS / "forward.json").read_text())
    return f"`python -m benchmarks.forward`: {results['machine']}.\n\n{table(results)}"


def render(text: str) -> str:
    """`text` with each table between its markers replaced."""
    for marker, content in {"variants": variants_table(), "forward": forward_table()}.items():
        begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
        text, count = re.subn(f"{begin}.*?{end}", f"{begin}{content}\n{end}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the README has {count} places for {marker!r}, expected one between its markers.")
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text()))
