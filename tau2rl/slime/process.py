"""slime's own log as it streams by: every line kept, the numbers of each optimizer step taken out of it.

slime writes `step 3: {'train/loss': 0.41, ...}` behind every optimizer step (backends/megatron_utils/model.py:918),
`rollout 3: {'rollout/raw_reward': 0.25, ...}` behind every round (observability/train_metric_utils.py:135) and
`perf 3: {'perf/train_time': 41.2, ...}` when a round has been trained on (observability/train_metric_utils.py:401).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, TextIO, cast

from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.tracking import JsonlSink, Sinks
from tau2rl.types import Sink

OWN_END_SECONDS = 1.0  # a terminal and Ray's `stop` signal the child too; it is asked again only where they did not
GRACE_SECONDS = 20.0  # for a driver to say goodbye to its cluster; less than Ray waits before it kills (launch/jobs.py)
REST_SECONDS = 5.0  # for the last lines, where a process below the child still holds its output

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def run_child(command: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None], cwd: Path) -> int:
    """Run a program to its end; its exit code, negative for the signal that killed it.

    `on_line` gets each line of its output and errors, in a thread of its own. It reads no input. Whatever ends us ends it:
    an exception here (Ctrl-C) ends it by SIGTERM, then SIGKILL, and on Linux it does not outlive a `kill -9` of this process.
    It stays in our process group, which is what Ray ends when a job's supervisor dies.
    """
    libc = _libc()

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        text=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=die_with_parent,
    )
    assert child.stdout is not None
    reader = _Reader(child.stdout, on_line)
    reader.start()
    try:
        code = child.wait()
    finally:
        _end(child)
        reader.join(REST_SECONDS)
    if reader.error is not None:
        raise reader.error
    return code


class _Reader(threading.Thread):
    """Takes lines until there are none, whatever becomes of them: a pipe that nobody reads would stop the child."""

    def __init__(self, stream: IO[str], on_line: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._on_line = on_line
        self.error: OSError | None = None

    def run(self) -> None:
        with contextlib.suppress(ValueError):  # closed by the interpreter's end
            for line in self._stream:
                self._pass_on(line.rstrip("\n"))

    def _pass_on(self, line: str) -> None:
        if self.error is None:
            try:
                self._on_line(line)
            except OSError as error:  # a full disk: told when the child has ended, not by killing hours of its work
                self.error = error


def _end(child: subprocess.Popen[str]) -> None:
    """Wait a moment, then ask, then insist; nothing where it has ended."""
    for seconds, send in ((OWN_END_SECONDS, child.terminate), (GRACE_SECONDS, child.kill)):
        try:
            child.wait(0 if child.poll() is not None else seconds)
            return
        except subprocess.TimeoutExpired:
            send()
    child.wait()


def _libc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "prctl") else None
    return None


KEPT_LINES = 400  # of the end: enough for the traceback that says why
_NUMBERS = re.compile(r"(?:^|[ \]])(step|rollout|perf) (\d+): (\{.*\})\s*$")
_PAIR = re.compile(r"'([^']+)': (-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|nan|inf))(?=[,}])")
_ERROR = re.compile(r"^(?:\S*\([^)]*\)\S* )?(?:[\w.]*\.)?([A-Z]\w*(?:Error|Exception)|RunIncomplete): (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a line tells: `Numbers(kind="step", index=3, values={"train/loss": 0.41})`."""

    kind: Literal["step", "rollout", "perf"]
    index: int
    values: dict[str, float]


def read_numbers(line: str) -> Numbers | None:
    """The numbers of a line; None for every other line.

    >>> read_numbers("[2026-08-21 17:14:19] model.py:918 - step 3: {'train/loss': 0.5, 'train/grad_norm': nan}").values
    {'train/loss': 0.5, 'train/grad_norm': nan}
    >>> read_numbers("(raylet) step 3: waiting") is None
    True
    """
    found = _NUMBERS.search(line)
    if found is None:
        return None
    values = {name: float(value) for name, value in _PAIR.findall(found[3])}
    return Numbers(kind=cast("Literal['step', 'rollout', 'perf']", found[1]), index=int(found[2]), values=values)


class SlimeLog:
    """Takes each line: to the job's log, to a file of the run folder, and what it tells to `metrics.jsonl` and the progress."""

    def __init__(
        self,
        *,
        file: Path,
        metrics: Path,
        steps: int,
        updates: int,
        clean: Callable[[str], str],
        say: TextIO,
        progress: Progress,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """`updates`: optimizer steps of a round; slime numbers them through, we count rounds."""
        self._file = file.open("a", encoding="utf-8")
        self._curves = Sinks([JsonlSink(metrics), *sinks])
        self._steps = steps
        self._updates = updates
        self._clean = clean
        self._say = say
        self._progress = progress
        self._began = time.monotonic()
        self._note = ""
        self.train_seconds = 0.0  # that Megatron's processes trained, or got ready to
        self._last: deque[str] = deque(maxlen=KEPT_LINES)

    def __call__(self, line: str) -> None:
        """Take a line. Raises OSError when it cannot be kept."""
        line = self._clean(line)
        self._last.append(line)
        self._file.write(line + "\n")
        self._file.flush()
        self._say.write(line + "\n")
        self._say.flush()
        numbers = read_numbers(line)
        if numbers is not None:
            self._take(numbers)

    def reason(self) -> str:
        """The last error that the lines name: "ValueError: ..."; "" where there is none."""
        named = [found for found in map(_ERROR.match, self._last) if found]
        return f"{named[-1][1]}: {named[-1][2]}" if named else ""

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._curves.close()

    def __enter__(self) -> SlimeLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, numbers: Numbers) -> None:
        if numbers.kind == "rollout":
            reward = numbers.values.get("rollout/raw_reward")
            self._note = "" if reward is None else f"reward {reward:.3f}"
            return
        if numbers.kind == "perf":  # a line of the rollout process has the same name and no such number
            self.train_seconds += numbers.values.get("perf/train_time", 0.0)
            return
        step = numbers.index // self._updates + 1
        self._curves.write(step, {name: value for name, value in numbers.values.items() if name != "train/step"})
        loss = numbers.values.get("train/loss")
        note = self._note or ("" if loss is None else f"loss {loss:.3f}")
        seconds = time.monotonic() - self._began
        self._progress(ProgressEvent(done=step, total=self._steps, seconds=seconds, unit="steps", note=note))
