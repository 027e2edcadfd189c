"""Scores of a table that takes hours, kept in a folder so that a killed process can continue.

    partial = PartialScores("scored.csv.partial")
    partial.begin({"input": "...", "model": "..."})                 # continue with the same settings, or begin
    for index in partial.missing(windows):
        partial.save(index, scores)                                 # [W, C] of each window of rows, by any process
    for scores in partial.scores(windows):                          # [W, C] again, to write the table
        ...
    partial.finish()                                                # the table is in its place: remove the folder

The folder is consistent whenever the process is killed. It holds `settings.json`, which says what was scored and how,
and one file of scores per window. Each file is written under another name and then moved into place. Once the table is
written, the settings are renamed before anything is removed, so that a folder which is half removed can't be mistaken
for one that is half done.

Shapes: W rows of a window, C columns of scores.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cross_trainer.data.tables import Name, replacing
from cross_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PartialScores:
    """Scores of an unfinished table, in a folder that `begin` makes."""

    def __init__(self, folder: Name) -> None:
        self.folder = Path(folder)
        self.joined = self.folder / "joined.tmp"
        self._settings = self.folder / "settings.json"
        self._done = self.folder / "done.json"

    def begin(self, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Continue with scores of the same settings, or begin.

        Args:
            settings: Everything that the scores depend on, as JSON.
            overwrite: Begin again if the folder holds scores of other settings.

        Raises:
            ConfigurationError: The folder holds scores of other settings; the message says what differs and what to do.
        """
        known = self._read(self._settings)
        if known is not None and known != settings:
            if not overwrite:
                raise ConfigurationError(
                    f"{self.folder} holds a half-done output of other settings ({_difference(known, settings)}). "
                    "Finish it with those, or delete that folder or pass --overwrite to begin again."
                )
            known = None
        if known is None:
            self.remove()
            self.folder.mkdir(parents=True)
            self._write(self._settings, lambda file: file.write(json.dumps(settings, indent=2).encode()))

    def was_finished(self, settings: Mapping[str, Any]) -> bool:
        """Whether the table of these settings was written, and only the removal of the folder was interrupted."""
        return bool(self._read(self._done) == settings)

    def missing(self, windows: int) -> list[int]:
        """The windows that aren't done."""
        return [index for index in range(windows) if not self._is_whole(index)]

    def save(self, index: int, scores: NDArray[np.float32]) -> None:
        """Keep a window's scores [W, C]."""
        import numpy as np

        self._write(self._window(index), lambda file: np.save(file, scores))

    def scores(self, windows: int) -> Iterator[NDArray[np.float32]]:
        """The scores [W, C] of each window, in order."""
        import numpy as np

        return (np.load(self._window(index)) for index in range(windows))

    def finish(self) -> None:
        """Remove the folder, now that the table is in its place."""
        os.replace(self._settings, self._done)
        self.remove()

    def remove(self) -> None:
        """Remove the folder with the files that this class wrote.

        Raises:
            OSError: The folder holds other files.
        """
        if self.folder.is_dir():
            for path in itertools.chain(self.folder.glob("scores-*.npy"), self.folder.glob("*.tmp")):
                path.unlink()
            for path in (self._settings, self._done):
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _window(self, index: int) -> Path:
        return self.folder / f"scores-{index:08d}.npy"

    def _is_whole(self, index: int) -> bool:
        import numpy as np

        try:
            np.load(self._window(index), mmap_mode="r")
        except (FileNotFoundError, ValueError, EOFError):  # not done, or lost in a power cut: it is scored again
            return False
        return True

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigurationError(f"{path} can't be read ({error}). Delete the folder {self.folder}.") from error

    def _write(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            write(file)


def _difference(known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """How two settings differ, as a clause; long values, such as hashes, are only named."""
    parts = []
    for name in dict.fromkeys([*known, *settings]):
        before, now = known.get(name), settings.get(name)
        if before != now:
            long = max(len(str(before)), len(str(now))) > 40
            parts.append(f"another {name}" if long else f"{name} {before!r} there, {now!r} here")
    return ", ".join(parts)
