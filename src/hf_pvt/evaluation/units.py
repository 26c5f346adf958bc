"""An evaluation in units of samples: what was found in each is a file that is whole or not there.

So a run that is killed goes on where it stopped, with any number of processes, and no sample counts twice.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_files import write_whole
from ..training.evaluators.evaluator import Evidence, together
from ..training.launch import TrainingError


class Units:
    """Consecutive samples, `size` of them a unit, the last one what is left.

    Args:
        folder: of the units' files.
        samples: how many there are in all.
    """

    def __init__(self, folder: Path, samples: int, size: int) -> None:
        self.folder, self.samples, self.size = folder, samples, size
        self.count = -(-samples // size)

    def file(self, unit: int) -> Path:
        return self.folder / f"unit-{unit:05d}-of-{self.count:05d}.json"

    def missing(self) -> list[int]:
        return [unit for unit in range(self.count) if not self.file(unit).is_file()]

    def batches(self, unit: int, batch_size: int) -> list[list[tuple[int, bool]]]:
        """The samples of a unit, each of which counts: see `EvaluationSamples`."""
        samples = range(unit * self.size, min((unit + 1) * self.size, self.samples))
        return [[(i, True) for i in samples[start:][:batch_size]] for start in range(0, len(samples), batch_size)]

    def write(self, unit: int, examples: int, bad: dict[str, str], evidence: Evidence) -> None:
        """What was found in a unit, of so many `examples` that counted."""
        counts = isinstance(evidence, np.ndarray)
        content = {"examples": examples, "bad_images": bad, "is_counts": counts}
        content["evidence"] = evidence.tolist() if isinstance(evidence, np.ndarray) else evidence
        write_whole(self.file(unit), json.dumps(content, allow_nan=False).encode())

    def total(self) -> tuple[int, dict[str, str], Evidence | None]:
        """Examples, bad images and evidence of all units.

        Raises TrainingError where one is missing.
        """
        if self.missing():
            raise TrainingError(f"{len(self.missing())} of {self.count} units are missing; start the same run again.")
        examples, bad, evidence = 0, dict[str, str](), None
        for found in self._contents():
            examples += found["examples"]
            bad |= found["bad_images"]
            part = np.array(found["evidence"], np.int64) if found["is_counts"] else found["evidence"]
            evidence = together(evidence, part)
        return examples, bad, evidence

    def tidy(self) -> None:
        """Remove what runs that were killed had begun to write."""
        for left in self.folder.glob("unit-*.incomplete"):
            left.unlink(missing_ok=True)

    def _contents(self) -> Iterator[dict[str, Any]]:
        for unit in range(self.count):
            yield json.loads(self.file(unit).read_text())
