"""Progress bars that a log can hold."""

from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm's bar on a terminal; elsewhere the one line that it ends with."""

    is_closing = False

    def display(self, *args: Any, **kwargs: Any) -> bool:
        return super().display(*args, **kwargs) if self.is_closing or self.fp.isatty() else True

    def close(self) -> None:
        self.is_closing = True
        super().close()
