"""A script of examples/ in a process that kills itself, as the system would, where a function is called too often.

    python die_at.py hf_pvt.evaluation.units Units.write 3 evaluate_model ARGUMENTS

dies at the fourth call of `Units.write` and leaves three units.
"""

import importlib
import operator
import os
import signal
import sys
from typing import Any

from paths import EXAMPLES

if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    module, name, calls, script = sys.argv[1:5]
    del sys.argv[1:5]
    *owner, attribute = name.split(".")
    holder = importlib.import_module(module)
    if owner:
        holder = operator.attrgetter(".".join(owner))(holder)
    function, left = getattr(holder, attribute), int(calls)

    def dying(*args: Any, **kwargs: Any) -> Any:
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*args, **kwargs)

    setattr(holder, attribute, dying)
    importlib.import_module(script).main()
