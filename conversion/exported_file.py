"""A file that was written and compared with the model that it holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportedFile:
    """What was written and compared: `change` is a share of what `of` names."""

    name: str  # inside the model's folder
    bytes: int
    change: float
    of: str = "the outputs' scale"

    def __str__(self) -> str:
        return f"{self.name}: {self.bytes / 1e6:.1f} MB, differs by {self.change:.1e} of {self.of}"
