"""Checkpoints: all that a run of training needs to go on, bit for bit, after it was cut off."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xpmlp.callbacks import Callback
from xpmlp.errors import ModelFileError, check_number, printable
from xpmlp.files import hold_folder, read_tensors, remove_orphans, write_tensors

if TYPE_CHECKING:
    from xpmlp.training import Run

FORMAT = 2
_NAME = re.compile(r"epoch(\d{5,})-batch(\d{7,})\.safetensors")


class Checkpoint(Callback):
    """Write the state of training to a folder, so that ``fit(..., resume=path)`` can go on.

    A file holds parameters, optimizer state, position, history and what the other callbacks of the
    library remember. A run that goes on ends with the same bits as one that was never cut off, on
    the same device and with the same libraries. On Ctrl-C and SIGTERM one more is written.

    Parameters
    ----------
    path : path-like
        A folder, made if it is missing. Files are named by epoch and batch.
    every : float, default 1.0
        Epochs between two files; 0.1 writes ten an epoch.
    keep : int, default 2
        Newest files that are kept.

    Raises
    ------
    ValueError
        When training starts: if the folder holds checkpoints and the run does not go on from one
        of them, or another run writes there.
    OSError
        If a file cannot be written. It ends training; those before it are intact.
    """

    def __init__(self, path: str | os.PathLike[str], every: float = 1.0, keep: int = 2) -> None:
        check_number("every", every, minimum=0, open_minimum=True)
        check_number("keep", keep, minimum=1, integer=True)
        self.path = Path(path)
        self.every = every
        self.keep = keep

    def on_start(self, run: Run) -> None:
        found = _files(self.path)
        if found and not (run.resumed_from and run.resumed_from.parent.samefile(self.path)):
            raise ValueError(
                f"path={str(self.path)!r} holds checkpoints, the newest is {found[-1].name}: go on "
                "from them with resume=, or give another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._held = hold_folder(self.path)
        if self._held is None:
            raise ValueError(f"path={str(self.path)!r} is where another run writes checkpoints")
        remove_orphans(self.path, _NAME.pattern)
        self._interval = max(1, round(self.every * run.n_batches))
        self._last = self._due(run)

    def on_progress(self, run: Run, n_rows: int) -> None:
        if run.interrupted or self._due(run) > self._last:
            self._last = self._due(run)
            self._write(run)

    def on_end(self, run: Run) -> None:
        self._held.close()

    def _due(self, run: Run) -> int:
        return (run.epoch * run.n_batches + run.done) // self._interval

    def _write(self, run: Run) -> None:
        state = run.state()
        if state is None:  # not finite, and training is about to end for it
            return
        tensors, description = state
        file = self.path / f"epoch{run.epoch + 1:05d}-batch{run.done:07d}.safetensors"
        write_tensors(file, tensors, {"format": FORMAT, "checkpoint": description})
        # Later ones than this are of the run that this one takes up, and not newer.
        older = [one for one in _files(self.path) if _place(one) <= _place(file)]
        for one in older[: -self.keep]:
            one.unlink(missing_ok=True)


class Saved(NamedTuple):
    """What a checkpoint holds."""

    path: Path
    tensors: dict[str, Any]
    description: dict[str, Any]


def read_checkpoint(path: str | os.PathLike[str]) -> Saved:
    """A checkpoint, or the newest one of a folder.

    Raises
    ------
    ModelFileError
        If it is damaged, or no checkpoint. None that is older is taken in its place; the message
        names it.
    OSError
        If there is none, or it cannot be read.
    """
    chosen, before = Path(path), None
    if chosen.is_dir():
        found = _files(chosen)
        if not found:
            raise FileNotFoundError(2, "there is no checkpoint in the folder", str(path))
        chosen, before = found[-1], found[-2] if len(found) > 1 else None
    hint = f"; the one before it is {str(before)!r}, resume= can name it" if before else ""
    try:
        tensors, description = read_tensors(chosen)
    except ModelFileError as error:
        raise ModelFileError(f"{error}{hint}") from error
    found_format, state = description.get("format"), description.get("checkpoint")
    if found_format != FORMAT or not isinstance(state, dict) or "sha256" not in description:
        raise ModelFileError(f"{chosen} is not a checkpoint of this version{hint}")
    return Saved(chosen, tensors, state)


def check_same_run(saved: Saved, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings than those that the run began with."""
    before = saved.description.get("settings")
    if not isinstance(before, dict):
        raise ModelFileError(f"{saved.path} is not a checkpoint of a run")
    differ = [
        f"{name}={before.get(name)}, now it is {settings.get(name)}"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
    ]
    if differ:
        listed = printable("; and with ".join(differ))
        raise ValueError(f"resume={str(saved.path)!r} is of a run with {listed}")


def _files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((file for file in found if _NAME.fullmatch(file.name)), key=_place)


def _place(file: Path) -> tuple[int, ...]:
    """Epoch and batch in the name of a checkpoint."""
    return tuple(map(int, _NAME.fullmatch(file.name).groups()))  # type: ignore[union-attr]
