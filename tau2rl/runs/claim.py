"""Whether a place is free for a run, and giving it back when the run was refused before it did anything."""

from __future__ import annotations

import shutil
from pathlib import Path

from tau2rl.errors import UserError
from tau2rl.runs.files import writing
from tau2rl.runs.folder import EVIDENCE, has_any
from tau2rl.runs.lock import RunLock


def is_vacant(path: Path) -> bool:
    """Whether nothing is there yet, so that all of a folder that is made there comes from the run. Raises UserError."""
    with writing(path):
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def withdraw(path: Path) -> bool:
    """Take away the folder of a run that was refused before it did anything, so that its name is free; whether it is gone.

    Only for a folder whose place was vacant (`is_vacant`) before `create`. It stays while a process has it open, and when it
    holds an episode, a number or a report; what a session prepared (an initial checkpoint, its log) goes with it.
    """
    try:
        lock = RunLock(path / "logs" / "lock", patience_seconds=0)
    except (UserError, OSError):
        return False
    try:
        if has_any(path, EVIDENCE):
            return False
        return _removed(path)
    finally:
        lock.close()


def _removed(path: Path) -> bool:
    if not path.is_symlink():
        shutil.rmtree(path)
        return True
    for item in path.resolve().iterdir():  # whose link it is, and where it points, is not ours
        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    return True
