"""Daemon threads that run one job after another: a new thread costs 0.4 ms of an episode's 9.

    if not run_on_idle(job, name="tau2 mock/a"):
        run_on_new(job, name="tau2 mock/a")

A job that hangs keeps its thread, and nobody waits for it, not even the end of the process: that is why this is no
`ThreadPoolExecutor`, whose threads are joined at exit.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

IDLE_SECONDS = 60.0  # a thread without a job ends after so long
IDLE = "idle"

Job = Callable[[], object]


class _ReusableThread:
    """One thread and the jobs that it is given, one at a time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, str]] = queue.SimpleQueue()

    def give(self, job: Job, name: str) -> None:
        self._jobs.put((job, name))

    def run(self) -> None:
        thread = threading.current_thread()
        while True:
            try:
                job, thread.name = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                try:
                    _idle.remove(self)
                except ValueError:  # taken in this very moment: a job is on its way
                    continue
                return
            job()
            del job  # with all that it holds, a whole conversation, while the thread waits for the next one
            thread.name = IDLE
            _idle.append(self)


_idle: list[_ReusableThread] = []  # its append, pop and remove are atomic


def run_on_idle(job: Job, *, name: str) -> bool:
    """Run the job on a thread that has nothing to do, at once; False when there is none. What it raises ends its thread."""
    try:
        thread = _idle.pop()
    except IndexError:
        return False
    thread.give(job, name)
    return True


def run_on_new(job: Job, *, name: str) -> None:
    """Run the job on a new thread. Returns when that runs, which can take milliseconds in a busy process."""
    thread = _ReusableThread()
    thread.give(job, name)
    threading.Thread(target=thread.run, name=name, daemon=True).start()
