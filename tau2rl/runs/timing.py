"""What each start of a run took, kept in the folder of its log so that a resumed run can add it up."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig, SftConfig, StageConfig
from tau2rl.report.cost import Costs, Start
from tau2rl.runs.files import read_json, write_json
from tau2rl.runs.folder import RunFolder
from tau2rl.settings import available_cores

FILE = "play.json"


class Clock:
    """The clock of one start: `with clock.part("update"): ...`; what it has is written down by `keep`."""

    def __init__(self, file: Path, config: StageConfig) -> None:
        """The clock runs."""
        self._file = file
        self._start = _start_of(config)
        self._began, self._cpu = time.monotonic(), time.process_time()
        self.wall: dict[str, float] = {}  # seconds of each part of a training
        self.trained = 0  # tokens
        self.played: Costs | None = None  # for a run that does not keep its episodes

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Count the time of what runs inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count so much time."""
        self.wall[name] = self.wall.get(name, 0.0) + seconds

    def keep(self, *, ended: bool = False) -> None:
        """Write down what there is. How long it took is known when it has ended: whoever is killed leaves nulls for that."""
        start = replace(self._start, wall=self.wall, trained=self.trained, played=self.played)
        if ended:
            start = replace(start, seconds=time.monotonic() - self._began, cpu_seconds=time.process_time() - self._cpu)
        write_json(self._file, start.to_json())


@contextmanager
def clocked(folder: RunFolder) -> Generator[Clock]:
    """Measure what runs inside. A start that is killed there leaves nulls: it played, and nobody knows for how long."""
    clock = Clock(folder.logs / FILE, folder.config)
    clock.keep()
    try:
        yield clock
    finally:
        clock.keep(ended=True)


def starts(folder: RunFolder) -> list[Start]:
    """What every start that played or trained took. One that found nothing left to do is none."""
    return starts_in(folder.path, FILE)


def starts_in(run: Path, name: str) -> list[Start]:
    """What the starts of the run left in files of this name."""
    return [Start.from_json(read_json(file)) for file in sorted((run / "logs").glob(f"attempt_*/{name}"))]


def _start_of(config: StageConfig) -> Start:
    """What is known before it begins."""
    match config:
        case EvalConfig() | SeedConfig() | RftConfig():
            workers, device = config.rollout.workers, config.local.device if config.policy.kind == "local" else "cpu"
        case SftConfig() | GrpoConfig():
            workers, device = 0, config.local.device if config.backend == "local" else "cpu"
        case _:
            workers, device = 0, "cpu"
    return Start(seconds=None, cpu_seconds=None, cores=available_cores(), workers=workers, gpu=device != "cpu")
