"""A folder of results belongs to one job, so that a run that was interrupted goes on with what is its own."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..atomic_files import write_json

JOB = "_job.json"


def check_same_job(folder: Path, job: dict[str, Any]) -> None:
    """That the results in a folder are this job's; in a new one the job is noted.

    Raises:
        ValueError: naming what differs.
    """
    job = json.loads(json.dumps(job))  # as it is read
    with suppress(FileNotFoundError):
        before = json.loads((folder / JOB).read_text())
        changed = [f"{key} was {before.get(key)} and is {job[key]}" for key in job if before.get(key) != job[key]]
        if changed:
            raise ValueError(f"{folder} holds results of another job ({'; '.join(changed)}); choose another folder.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB, job)
