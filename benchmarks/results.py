"""What was measured: a file for each processor, into which every run is merged.

`runs` has each run's versions and best products; `cases` has, for each model and "size, batch", the candidates'
seconds, page faults and extra MiB of a forward, a number a round, and the run they are from, `training` those of a
training step, and `profile` the seconds of each kind of operator; `gmacs` has those of one image, for each model and
size.
"""

import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

from .machine import processor_slug

RESULTS = Path(__file__).parent / "results"
SPEED = RESULTS / "speed"

# The parts of which every number names its run.
MEASURED = ("cases", "training", "profile")

Results = dict[str, Any]
Case = dict[str, Any]


def load(processor: dict[str, Any]) -> Results:
    """The results of a processor, empty ones where there are none."""
    path = file_of(processor)
    return empty(processor) | (json.loads(path.read_text()) if path.exists() else {})


def empty(processor: dict[str, Any]) -> Results:
    return {"processor": processor, "runs": {}, "gmacs": {}} | {part: {} for part in MEASURED}


def load_all() -> list[Results]:
    """Those of all processors."""
    return [json.loads(path.read_text()) for path in sorted(SPEED.glob("*.json"))]


def save(results: Results) -> None:
    """Write all, without the runs that later ones have replaced."""
    used = set().union(*(runs_of(results[part]) for part in MEASURED))
    results["runs"] = {run: about for run, about in results["runs"].items() if run in used}
    path = file_of(results["processor"])
    path.parent.mkdir(exist_ok=True, parents=True)
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)  # a list is a line
    written = path.with_suffix(".written")
    written.write_text(text + "\n")
    os.replace(written, path)


def runs_of(models: dict[str, dict[str, Case]]) -> set[str]:
    """The runs that numbers are from."""
    return {measured["run"] for cases in models.values() for case in cases.values() for measured in case.values()}


def file_of(processor: dict[str, Any]) -> Path:
    return SPEED / f"{processor_slug(processor)}.json"


def case_of(results: Results, model: str, size: int, batch: int) -> Case:
    """A case to read and to fill."""
    cases = results["cases"].setdefault(model, {})
    case: Case = cases.setdefault(case_name(size, batch), {})
    return case


def case_name(size: int, batch: int) -> str:
    return f"{size}, {batch}"


def record(case: Case, candidate: str, run: str, samples: list[dict[str, float]]) -> None:
    """Replace what a candidate had by the rounds of a run."""
    case[candidate] = {"run": run} | {name: [sample[name] for sample in samples] for name in samples[0]}


def median(case: Case, candidate: str, name: str = "seconds") -> float:
    return statistics.median(case[candidate][name])


def ratio(case: Case, candidate: str, base: str) -> str:
    """A candidate's time divided by another's: median of the rounds and range, as they alternated.

    Of two runs the medians' ratio; without a range then, and of a single round.
    """
    if case[candidate]["run"] != case[base]["run"]:
        return f"{median(case, candidate) / median(case, base):.2f}"
    pairs = zip(case[candidate]["seconds"], case[base]["seconds"], strict=True)
    ratios = sorted(theirs / own for theirs, own in pairs)
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}"
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def limit(results: Results, model: str, size: int, batch: int, dtype: str) -> float:
    """Seconds that a forward's products alone would take at the best rate that any run saw on this processor."""
    rate = max(run["rates"][dtype] for run in results["runs"].values() if "rates" in run)
    return 2e9 * results["gmacs"][model][str(size)] * batch / rate
