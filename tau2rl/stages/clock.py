"""What each start of a run took while it played, kept in the folder of its log so that a resumed run can add it up."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict

from tau2rl.metrics.cost import Start
from tau2rl.store.files import read_json, write_json
from tau2rl.store.run import RunFolder

FILE = "play.json"


@contextmanager
def clocked(folder: RunFolder) -> Generator[None]:
    """Measure what runs inside. A start that is killed there leaves nulls: it played, and nobody knows for how long."""
    file = folder.logs / FILE
    write_json(file, asdict(Start(seconds=None, cpu_seconds=None)))
    began, cpu = time.monotonic(), time.process_time()
    try:
        yield
    finally:
        write_json(file, asdict(Start(seconds=time.monotonic() - began, cpu_seconds=time.process_time() - cpu)))


def starts(folder: RunFolder) -> list[Start]:
    """What every start that played took. One that found nothing left to play is none."""
    return [Start(**read_json(file)) for file in sorted((folder.path / "logs").glob(f"attempt_*/{FILE}"))]
