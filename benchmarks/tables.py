"""The results as Markdown: times, memory, and what they were measured with."""

from collections.abc import Callable, Iterable
from typing import Any

from .candidates import CANDIDATES, missing
from .machine import processor_text
from .models import CASES
from .results import Results, case_name, limit, median, ratio, runs_of

TITLES = {
    "transformers": "Transformers",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime int8 dynamic": "ONNX Runtime int8, dynamic",
    "onnxruntime int8 static": "ONNX Runtime int8, static",
}
BASES = {"float32": "packed", "bfloat16": "packed bf16"}


class Notes:
    """Reasons for what a table lacks; each gets a letter where it is first needed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def dash(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"– ({chr(ord('a') + self.reasons.index(reason))})"

    def text(self) -> str:
        return "; ".join(f"({chr(ord('a') + index)}) {reason}" for index, reason in enumerate(self.reasons))


Cell = Callable[[dict[str, Any], str], str]


def time_table(results: Results, models: Iterable[str], dtype: str) -> str:
    """Milliseconds of ours, packed; the other candidates' time divided by it; how far it is from the limit."""
    base = BASES[dtype]
    others = [name for name, candidate in CANDIDATES.items() if candidate.dtype == dtype and name != base]
    notes, lines = Notes(), header("model", "size, batch", f"{base}, ms", *map(title, others), f"{base} / limit")
    for model, size, batch, case in rows(results, models):
        if base not in case:
            continue
        own = median(case, base)
        cells = [f"{1e3 * own:.0f}"]
        cells += [
            cell(notes, other, missing(other, model, size), case, lambda c, name: ratio(c, name, base))
            for other in others
        ]
        lines.append(
            line(f"`{model}`", case_name(size, batch), *cells, f"{own / limit(results, model, size, batch, dtype):.2f}")
        )
    return "\n".join([*lines, "", notes.text()]).rstrip()


def memory_table(results: Results, models: Iterable[str]) -> str:
    """Extra peak memory of a forward, in MiB."""
    names = [name for name in CANDIDATES if "int8" not in name and "compiled" not in name]
    notes, lines = Notes(), header("model", "size, batch", *map(title, names))
    for model, size, batch, case in rows(results, models):
        cells = [
            cell(notes, name, missing(name, model, size), case, lambda c, name: f"{median(c, name, 'extra_mib'):.0f}")
            for name in names
        ]
        lines.append(line(f"`{model}`", case_name(size, batch), *cells))
    return "\n".join([*lines, "", notes.text()]).rstrip()


def origin(results: Results, part: str = "cases") -> str:
    """Processor and versions of all runs whose numbers are in the tables of a part of the results."""
    runs = runs_of(results[part])
    versions = {", ".join(f"{k} {v}" for k, v in results["runs"][run]["versions"].items()) for run in runs}
    return f"{processor_text(results['processor'])}; {' and '.join(sorted(versions))}"


def rows(results: Results, models: Iterable[str]) -> Iterable[tuple[str, int, int, dict[str, Any]]]:
    for model in models:
        for size, batch in CASES:
            case = results["cases"].get(model, {}).get(case_name(size, batch))
            if case:
                yield model, size, batch, case


def cell(notes: Notes, candidate: str, reason: str | None, case: dict[str, Any], value: Cell) -> str:
    """What was measured of a candidate, or, where there is none, a dash and the reason."""
    if reason is None and candidate in case:
        return value(case, candidate)
    return notes.dash(reason or "not measured yet")


def title(candidate: str) -> str:
    return TITLES.get(candidate, candidate)


def header(*cells: str) -> list[str]:
    return [line(*cells), f"|{' --- |' * len(cells)}"]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
