"""What a call that is to be refused says."""

from collections.abc import Callable
from typing import Any


def refusal(case: Any, function: Callable[..., object], /, *arguments: Any, **values: Any) -> str:
    """The message of the ValueError or OSError that a call raises; where there is none, the case is named."""
    try:
        function(*arguments, **values)
    except (ValueError, OSError) as error:
        return str(error)
    raise AssertionError(f"not refused: {case}")
