"""The tables and the plot of the documents, rendered from the variants and from the results of the benchmarks.

python -m benchmarks.readme
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from hf_pvt import PUBLISHED_DETECTORS, VARIANTS
from hf_pvt.detection.detector_classes import DETECTORS
from hf_pvt.published.detectors import PublishedDetector

from . import detection, growth, profile, runtimes, training, training_memory
from .models import MODELS
from .results import RESULTS, Results, load_all
from .tables import memory_table, origin, time_table


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


def detectors_table() -> str:
    """RetinaNet and Mask R-CNN, published on all variants, a variant a line."""
    header = ["variant", "RetinaNet: parameters, M", "GMACs at 1280x800", "box AP, % (reported)"]
    header += ["Mask R-CNN: parameters, M", "GMACs at 1280x800", "box AP / mask AP, % (reported)"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for name in VARIANTS:
        rows = [row for row in PUBLISHED_DETECTORS.values() if row.variant == name and row.schedule == "1x"]
        cells = [f"`{name}`"]
        for row in sorted(rows, key=lambda row: row.mask_ap_reported is not None):  # RetinaNet first
            cells += detector_cells(row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def detector_cells(row: PublishedDetector) -> list[str]:
    """Parameters, GMACs, and the reported precision."""
    precision = f"{row.box_ap_reported:.1f}"
    precision += "" if row.mask_ap_reported is None else f" / {row.mask_ap_reported:.1f}"
    return [f"{row.parameters / 1e6:.1f}", f"{row.gmacs_800x1280:.0f}", precision]


def further_detectors_table() -> str:
    """The others, published on two variants, one a line."""
    header = ["detector", "variant", "parameters, M", "GMACs at 1280x800", "box AP / mask AP, % (reported)"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in PUBLISHED_DETECTORS.values():
        if row.schedule == "3x":
            cells = [DETECTORS[row.model_type].__name__, row.variant]
            lines.append(f"| {' | '.join([*(f'`{cell}`' for cell in cells), *detector_cells(row)])} |")
    return "\n".join(lines)


def measure_commands() -> str:
    """The commands that measure what the papers report of one variant."""
    variant, detector = VARIANTS["pvt-v2-b2"], PUBLISHED_DETECTORS["retinanet-pvt-v2-b2"]
    figures = {
        f"ImageNet-1k, top-1 accuracy, reported: {variant.top1_reported:.1f}%": (
            "pvt_v2_b2.pth --validation_dir imagenet/val"
        ),
        f"ADE20K, mean IoU, reported: {variant.miou_reported:.1f}%": (
            "fpn_pvt_v2_b2_ade20k.pth \\\n    --validation_dir ADEChallengeData2016 --labels ade20k --reduce_labels"
        ),
        f"COCO, box AP of RetinaNet, reported: {detector.box_ap_reported:.1f}%": (
            "retinanet_pvt_v2_b2_fpn_1x_coco.pth \\\n"
            "    --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json"
        ),
    }
    lines = [f"# {figure}\npython examples/evaluate_model.py {words}" for figure, words in figures.items()]
    return "```bash\n" + "\n".join(lines) + "\n```"


def last_run(benchmark: ModuleType) -> Callable[[], str]:
    """The table of a benchmark that keeps its last run alone."""
    name = benchmark.__name__.removeprefix("benchmarks.")

    def rendered() -> str:
        results = json.loads((RESULTS / f"{name}.json").read_text())
        return f"`python -m benchmarks.{name}`: {results['machine']}.\n\n{benchmark.table(results)}"

    return rendered


def of_each_processor(table: Callable[[Results], str], part: str = "cases") -> str:
    """A table of a part of the results, for each processor that it was measured on."""
    return "\n\n".join(f"{origin(results, part)}:\n\n{table(results)}" for results in load_all() if results[part])


def widest() -> Results:
    """Of the processor that most models were measured on."""
    return max(load_all(), key=lambda results: len(results["cases"]))


def of_widest(table: Callable[[Results], str]) -> Callable[[], str]:
    return lambda: f"{origin(widest())}:\n\n{table(widest())}"


def speed_tables(table: Callable[..., str], models: Sequence[str], **arguments: str) -> Callable[[], str]:
    return lambda: of_each_processor(lambda results: table(results, models, **arguments))


def training_tables(models: Sequence[str]) -> Callable[[], str]:
    return lambda: of_each_processor(lambda results: training.training_table(results, models), "training")


def growth_tables() -> str:
    return of_each_processor(growth.growth_table)


def profile_table() -> str:
    return of_each_processor(profile.profile_table, "profile")


def training_memory_tables() -> str:
    """The last run of `benchmarks.training_memory`."""
    results = json.loads((RESULTS / "training_memory.json").read_text())
    tables = [f"{title}:\n\n{training_memory.table(results, task)}" for task, title in MEMORY_TITLES.items()]
    example = training_memory.example(results, "pvt-v2-b2", images=128, size=224)
    return f"`python -m benchmarks.training_memory`, in MiB.\n{example}\n\n" + "\n\n".join(tables)


ROOT = Path(__file__).parent.parent
PLOT = ROOT / "docs" / "growth.svg"
README_MODELS = ("pvt-v2-b2",)  # docs/speed.md has all
MEMORY_TITLES = {"classifier": "Classifiers with 1,000 labels", "segmenter": "Semantic FPN with 150 labels"}
TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {
        "variants": variants_table,
        "detectors": detectors_table,
        "further-detectors": further_detectors_table,
        "measure": measure_commands,
        "runtimes": last_run(runtimes),
        "forward": speed_tables(time_table, README_MODELS, dtype="float32"),
        "serving": speed_tables(time_table, README_MODELS, dtype="bfloat16"),
        "memory": of_widest(lambda results: memory_table(results, README_MODELS)),
        "growth": of_widest(growth.growth_table),
        "training": training_tables(README_MODELS),
        "detection": last_run(detection),
    },
    ROOT / "docs" / "speed.md": {
        "float32": speed_tables(time_table, MODELS, dtype="float32"),
        "bfloat16": speed_tables(time_table, MODELS, dtype="bfloat16"),
        "memory": speed_tables(memory_table, MODELS),
        "growth": growth_tables,
        "training": training_tables(MODELS),
        "profile": profile_table,
    },
    ROOT / "examples" / "README.md": {"training-memory": training_memory_tables},
}


def render(document: Path) -> str:
    """A document's text with each table between its markers replaced."""
    text = document.read_text()
    for marker, table in TABLES[document].items():
        begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
        text, count = re.subn(f"{begin}.*?{end}", f"{begin}{table()}\n{end}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{document} has {count} places for {marker!r}, expected one between its markers.")
    return text


if __name__ == "__main__":
    for document in TABLES:
        document.write_text(render(document))
    growth.plot([widest()], PLOT)
