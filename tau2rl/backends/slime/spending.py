"""What the rollout process spends, in a file beside the log of the start that it belongs to."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from tau2rl.config import GrpoConfig
from tau2rl.metrics.cost import Costs, Start
from tau2rl.settings import available_cores
from tau2rl.store.files import write_json
from tau2rl.types import Episode

log = logging.getLogger(__name__)
FILE = "rollout.json"


class Spending:
    """Sums over the episodes of this process, and what it took while it had rounds to play. Written down behind each."""

    def __init__(self, folder: Path, config: GrpoConfig) -> None:
        """`folder` is the run's; the start that is going on has the highest number."""
        self._folder = folder
        self._workers = config.rollout.workers
        self._costs = Costs()
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._cpu_before = time.process_time()

    def add(self, episode: Episode) -> None:
        """Count an episode, of a look too."""
        self._costs.add(episode)

    def round(self, seconds: float) -> None:
        """A round has ended that took so long."""
        self._seconds += seconds
        now = time.process_time()
        self._cpu_seconds += now - self._cpu_before
        self._cpu_before = now
        self._write()

    def look(self) -> None:
        """A look has ended. Nobody says how long it took, so its CPU time is not held against the rounds."""
        self._cpu_before = time.process_time()
        self._write()

    def _write(self) -> None:
        start = Start(
            seconds=self._seconds,
            cpu_seconds=self._cpu_seconds,
            cores=available_cores(),
            workers=self._workers,
            played=self._costs,
        )
        logs = max((self._folder / "logs").glob("attempt_*"), key=_number, default=None)
        if logs is None:
            return
        try:
            write_json(logs / FILE, start.to_json())
        except OSError as error:  # a full disk must not end a rollout that eight GPUs wait for
            log.error("cannot keep what the rollouts took: %s", error)


def _number(logs: Path) -> int:
    digits = logs.name.removeprefix("attempt_")
    return int(digits) if digits.isdigit() else 0
