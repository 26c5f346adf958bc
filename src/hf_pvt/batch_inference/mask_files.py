"""Label maps as PNG files that are named after their images."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..atomic_files import write_whole


class MaskFiles:
    """The files of one folder, which have their keys' names but for the suffix.

    Args:
        root: names are relative to it.
        folder: in `root`.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.keys: dict[Path, str] = {}

    def name(self, key: str) -> Path:
        """The file of a key.

        Raises ValueError for a key that leads out of the folder, or one whose file another key has.
        """
        relative = PurePosixPath(key.lstrip("/"))
        if ".." in relative.parts or not relative.name:
            raise ValueError(f"the key {key!r} cannot be a mask's file; leave --masks_as_files out.")
        file = self.folder / relative.with_suffix(".png")
        if file in self.keys:
            raise ValueError(f"the masks of {self.keys[file]} and {key} would both be {file}; rename one.")
        self.keys[file] = key
        return file

    def write(self, keys: Sequence[str], masks: Sequence[bytes]) -> list[str]:
        """The files' names."""
        files = [self.name(key) for key in keys]
        for file, mask in zip(files, masks, strict=True):
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.root / file, mask)
        return [file.as_posix() for file in files]
