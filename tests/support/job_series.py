"""Runs of the scripts in examples/, one after another in the same processes: accelerate launch job_series.py FILE.

FILE is a JSON list of [name, module, words]. Of each job, each process writes <name>-<process>.json beside the file:
its error, None where there is none, and what it printed.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

from paths import EXAMPLES

if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    from script_runs import reset
    from torch import distributed

    file = Path(sys.argv[1])
    leave = distributed.destroy_process_group
    # Of all jobs there is one group, which a script leaves at its end.
    with patch.object(distributed, "destroy_process_group", lambda group=None: None):
        for name, module, words in json.loads(file.read_text()):
            reset()
            sys.argv = [module, *words]
            error, printed = None, io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                try:
                    importlib.import_module(module).main()
                except Exception as caught:
                    error = f"{type(caught).__name__}: {caught}"
            report = {"error": error, "printed": printed.getvalue()}
            file.with_name(f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(report))
    leave()
