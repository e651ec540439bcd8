"""Whose a run is before it is open: one process claims the folder, and gives it back when the run was refused at once."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from tau2rl.config import StageConfig
from tau2rl.errors import UserError
from tau2rl.runs.folder import CLAIM, EVIDENCE, JOB, RunFolder, has_any, make_run_folder, refuse_strangers
from tau2rl.runs.sessions import RunLock


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that one process has asked for, and nobody else may as long as this is held; it goes with its holder."""

    path: Path
    new: bool  # whether nothing of a run was there before
    _lock: RunLock

    @contextlib.contextmanager
    def left_to(self, job: str) -> Generator[None]:
        """After this block the claim is that of a job which nobody follows, until it has opened the folder."""
        self._lock.note(f"{JOB}{job}")  # ahead: once it is submitted, it may open the folder at any moment
        try:
            yield
        except BaseException:
            self._lock.note("")
            raise

    def withdraw(self) -> None:
        """Take away the folder of a run that was refused, where it is new: what was refused must not hold the name."""
        if self.new:
            withdraw(self.path)


HasEnded = Callable[[str, str], bool]  # (job, address of its server): whether it is known to be over


@contextlib.contextmanager
def claimed(
    path: Path, config: StageConfig, *, resume: bool, has_ended: HasEnded = lambda job, address: False
) -> Generator[Claim]:
    """`RunFolder.create`, and the claim to what it made. Raises UserError that names the holder, and for what `create` does.

    `has_ended` is asked about a job to which the run was left and which has not opened its folder: one that died before holds
    nothing any more.
    """
    path = path.absolute()
    make_run_folder(path)
    lock = RunLock(path / "logs" / CLAIM, patience_seconds=0, deed="has started")
    try:
        job, _, address = lock.said.removeprefix(JOB).partition(" at ")
        if lock.said.startswith(JOB) and not has_ended(job, address):
            lock.note(lock.said)
            raise UserError(
                f"{lock.said} was submitted for the run in `{path}` and has not opened its folder yet",
                hint=f"wait for it, or end it with `ray job stop` and remove `{path / 'logs' / CLAIM}`",
            )
        refuse_strangers(path)  # before there is a claim: what is withdrawn with it must not be theirs
        claim = Claim(path, not (path / "config.json").exists(), lock)
        try:
            RunFolder.create(path, config, resume=resume)
        except UserError:
            claim.withdraw()
            raise
        yield claim
    finally:
        lock.close()


def withdraw(path: Path) -> bool:
    """Take away the folder of a run that was refused before it did anything, so that its name is free; whether it is gone.

    Only for a folder that is claimed and new. It stays while a process has it open, and when it
    holds an episode, a number or a report; what a session prepared (an initial checkpoint, its log) goes with it.
    """
    if not path.is_dir():
        return False
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
    """Remove the folder, `logs/` with the claim last: until then nobody takes what is left for another's files."""
    linked = path.is_symlink()  # whose link it is, and where it points, is not ours
    path = path.resolve()
    with contextlib.suppress(OSError):  # whoever comes as soon as the claim is gone has the rest
        for item in sorted(path.iterdir(), key=lambda item: item.name == "logs"):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        if not linked:
            path.rmdir()
    return not (path / "config.json").exists()
