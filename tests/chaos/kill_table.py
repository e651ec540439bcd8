"""kill -9 of every kind of process of a run, at random moments, as a table: `python -m tests.chaos.kill_table --times 3`.

The run is an evaluation on `mock` with a scripted policy and user, on a head of its own or `--inline`, with two workers. A kind
is found by its command line below the command. The victim is killed 0 to 10 seconds after it has come, in one run of three, or
after the first episode. What is told:

- after how many seconds the command ended, or that it went on, and with which word
- after how many seconds `--resume` plays again
- what is left a minute later: processes of the run (by parentage, and by a mark in their environment), folders, /dev/shm
"""

from __future__ import annotations

import argparse
import os
import pty
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tau2rl.launch import supervisor
from tau2rl.settings import child_environment
from tests.stubs.openai import OpenAIStub

MINUTE = 60.0
LATEST = 10.0  # seconds until a process is killed
MARK = "TAU2RL_KILL_TABLE"
COMMAND = "the command"
# name -> what stands in the command line.
KINDS = {
    "outer supervisor": supervisor.__file__,
    "inner supervisor": supervisor.__file__,
    "`ray start`": "-m ray.scripts.scripts start",
    "gcs server": "/gcs_server ",
    "raylet": "/raylet ",
    "dashboard": "dashboard/dashboard.py",
    "fork server of the dashboard": "multiprocessing.forkserver import main; main(",
    "resource tracker of the dashboard": "multiprocessing.resource_tracker",
    "client server": "ray.util.client.server",
    "dashboard agent": "ray::DashboardAgent",
    "runtime env agent": "ray::RuntimeEnvAgent",
    "job supervisor": "ray::JobSupervisor",
    "job driver": "tau2rl.launch.entry",
    "rollout worker": "ray::EpisodeWorker",
    "shell that waits for the job supervisor": "while kill -s 0",
}
MODULES = tuple(
    f"ray-dashboard-{name}Head" for name in ("Metrics", "Data", "Event", "Job", "Node", "Report", "Serve", "State", "Train")
)
ALL_MODULES = "every module of the dashboard, one by one"
INLINE = ("the command, inline",)
PROGRAMS = {  # what looks at runs, and what serves a policy: the words behind `tau2rl`
    "view": ("view", "{run}", "--port", "0"),
    "top": ("top", "{run}"),
    "serve": ("serve", "--model", "openai/m", "--api-base", "{server}", "--port", "0"),
}


def words_of(process: int) -> str:
    """The command line; "" when it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def born(process: int) -> str:
    """When it began, which with its number names a process; "" when it has ended."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def find(command: int, part: str) -> list[int]:
    """The processes below the command whose command line holds `part`; not a shell that only quotes it."""
    below = [process for process in supervisor.descendants(command) if part in words_of(process)]
    # The supervisors have all that they start in their own words, and modules the fork server's.
    found = [process for process in below if part == supervisor.__file__ or supervisor.__file__ not in words_of(process)]
    return [process for process in found if part.startswith("ray-dashboard") or "ray-dashboard-" not in words_of(process)]


def victim_of(command: int, kind: str) -> int | None:
    """The process to kill, once it is there."""
    if kind in (COMMAND, *INLINE):
        return command
    found = find(command, KINDS.get(kind, kind))
    number = 1 if kind == "inner supervisor" else 0
    return found[number] if len(found) > number else None


def episodes(output: Path) -> int:
    """How many are on disk."""
    file = output / "episodes.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def until(what: Callable[[], object], seconds: float = MINUTE) -> float | None:
    """The seconds until it is so; None when it is not, after so many."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass
class Run:
    """A command with everything that was ever below it."""

    command: subprocess.Popen[str]
    output: Path
    scratch: Path  # its $TMPDIR
    mark: str
    seen: dict[int, str] = field(default_factory=dict[int, str])
    folders: set[Path] = field(default_factory=set[Path])  # of its heads
    memory: set[str] = field(default_factory=lambda: set(os.listdir("/dev/shm")))

    def watch(self) -> None:
        """Note every process below the command until it has ended."""
        while self.command.poll() is None:
            self.note(supervisor.descendants(self.command.pid))
            time.sleep(0.2)

    def note(self, processes: Sequence[int]) -> None:
        """Processes of the run, and the folder that a supervisor's words name."""
        self.seen |= {process: began for process in processes if process not in self.seen and (began := born(process))}
        for process in processes:
            _, found, rest = words_of(process).partition(f"{supervisor.__file__} ")
            if found:
                self.folders.add(Path(rest.split(" ")[0]))

    def left(self) -> list[str]:
        """What is there of it though it has ended."""
        alive = {process for process, began in self.seen.items() if born(process) == began}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if f"{MARK}={self.mark}".encode() in Path(f"/proc/{name}/environ").read_bytes() and born(int(name)):
                    alive.add(int(name))
        files = [str(folder) for folder in self.folders if folder.exists()]
        files += [str(path) for path in self.scratch.iterdir()]
        return [*(f"process {process} {words_of(process)[:60]}" for process in sorted(alive)), *files, *self.shared_memory()]

    def shared_memory(self) -> list[str]:
        """What has come to /dev/shm meanwhile and is open in no process of this machine."""
        new = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")} - {f"/dev/shm/{name}" for name in self.memory}
        for maps in Path("/proc").glob("[0-9]*/maps") if new else ():
            with suppress(OSError):
                text = maps.read_text(errors="replace")
                new = {name for name in new if name not in text}
        return sorted(new)


def argv(output: Path, samples: int, *more: str) -> list[str]:
    """An evaluation of one task of `mock`, as often as `samples` says."""
    settings = ["--domains", "mock", "--task-split", "base", "--limit", "1", "--policy", "gold", "--protocol", "transcript"]
    options = ["--user-model", "scripted", "--num-samples", str(samples), "--output", str(output)]
    return [sys.executable, "-m", "tau2rl", "eval", *settings, *options, *more]


ALL = (COMMAND, *INLINE, *KINDS, ALL_MODULES, *PROGRAMS)


@contextmanager
def running(output: Path, *more: str) -> Iterator[Run]:
    """A run that goes on until it is ended."""
    mark, scratch = output.parent.name, output.parent / f"tmp-{time.monotonic_ns()}"
    scratch.mkdir(parents=True)
    environment = {name: value for name, value in child_environment().items() if not name.startswith("RAY_ADDRESS")}
    command = subprocess.Popen(
        argv(output, 100_000, "--concurrency", "2", *more),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**environment, MARK: mark, "TMPDIR": str(scratch)},
    )  # fmt: skip
    run = Run(command, output, scratch, mark)
    threading.Thread(target=run.watch, daemon=True).start()
    try:
        yield run
    finally:
        command.kill()
        command.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """What became of a run."""

    kind: str
    after: float  # seconds since it had come, or since the first episode
    played: int  # episodes by then
    outcome: str  # "1 after 4.2 s", or that it went on
    word: str  # the last line that is an error
    resumed: str
    left: list[str]

    def __str__(self) -> str:
        """A line of the table."""
        left = "; ".join(self.left) or "nothing"
        told = f"| {self.kind} | {self.after:.1f} | {self.played} | {self.outcome} | {self.resumed} | {left} |"
        return f"{told} {self.word}" if self.word else told

    @property
    def well(self) -> bool:
        """It ended or went on within a minute, plays again, and nothing is left."""
        return "STILL" not in self.outcome and "NOT" not in self.resumed and not self.left


def kill(kind: str, folder: Path, wait: float, *, playing: bool) -> Killed:
    """Kill one process of this kind in a run in `folder`, `wait` seconds after it has come, or after the first episode."""
    if kind in PROGRAMS:
        return kill_program(kind, folder, wait)
    output, place = folder / "run", ("--inline",) if kind in INLINE else ("--set", "rollout.workers=2")
    with running(output, *place) as run:
        if playing:
            until(lambda: episodes(output) or run.command.poll() is not None, 3 * MINUTE)
        for number, part in enumerate(MODULES if kind == ALL_MODULES else (kind,)):
            kill_in(run, part, 1.0 if number else wait)
        played = episodes(output)
        outcome, said = end_of(run)
        until(lambda: not run.left())
        left = run.left()
    word = next((line for line in reversed(said.splitlines()) if line.startswith(("error: ", "warning: "))), "")
    return Killed(kind=kind, after=wait, played=played, outcome=outcome, word=word, resumed=resume(output), left=left)


def kill_in(run: Run, kind: str, wait: float) -> None:
    """Kill one process of this kind, `wait` seconds after it has come."""
    victim: int | None = None

    def come() -> bool:
        nonlocal victim
        victim = victim_of(run.command.pid, kind)
        return victim is not None or run.command.poll() is not None

    until(come, 3 * MINUTE)
    assert victim is not None, f"no {kind}"
    time.sleep(wait)
    run.note(supervisor.descendants(run.command.pid))
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)


def end_of(run: Run) -> tuple[str, str]:
    """How the run ended, or went on, and what it said. A run that goes on is one that still plays a minute later."""
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        _, said = run.command.communicate(timeout=MINUTE)
        return f"{run.command.returncode} after {time.monotonic() - began:.1f} s", said
    before = episodes(run.output)
    until(lambda: episodes(run.output) > before or run.command.poll() is not None, 3 * MINUTE)
    seconds = time.monotonic() - began
    went_on = run.command.poll() is None and episodes(run.output) > before
    told = "went on" if went_on and seconds < MINUTE + 5 else f"{'went on' if went_on else 'STILL silent'} after {seconds:.0f} s"
    run.command.send_signal(signal.SIGTERM)
    interrupted = time.monotonic()
    try:
        _, said = run.command.communicate(timeout=2 * MINUTE)
        end = f"then SIGTERM: {run.command.returncode} after {time.monotonic() - interrupted:.1f} s"
    except subprocess.TimeoutExpired:
        run.command.kill()
        _, said = run.command.communicate()
        end = "then SIGTERM: STILL there after two minutes"
    return f"{told}; {end}", said


def resume(output: Path) -> str:
    """How long it takes until the run in a folder plays again."""
    before = episodes(output)
    with running(output, "--inline", "--resume", "--set", "rollout.workers=0") as run:
        seconds = until(lambda: episodes(output) > before or run.command.poll() is not None, 2 * MINUTE)
        if run.command.poll() is not None or seconds is None:
            run.command.kill()
            return f"NOT: {run.command.communicate()[1][-200:]}"
        run.command.send_signal(signal.SIGTERM)
        run.command.communicate(timeout=MINUTE)
    return f"{seconds:.1f} s" if seconds < MINUTE else f"NOT within a minute: {seconds:.1f} s"


def kill_program(name: str, folder: Path, wait: float) -> Killed:
    """Kill `view`, `top` or `serve`, `wait` seconds after it has said something, and start it again over the same run."""
    output = folder / "run"
    subprocess.run(argv(output, 20, "--inline"), capture_output=True, check=True)
    with OpenAIStub() as server:
        places = {"run": str(output), "server": server.api_base}
        words = [sys.executable, "-m", "tau2rl", *(word.format(**places) for word in PROGRAMS[name])]
        with program(words, folder) as run:
            time.sleep(wait)
            run.note([run.command.pid, *supervisor.descendants(run.command.pid)])
            run.command.kill()
            run.command.wait()
            until(lambda: not run.left())
            left = run.left()
        began = time.monotonic()
        with program(words, folder):
            again = f"{time.monotonic() - began:.1f} s"
    return Killed(kind=f"`{name}`", after=wait, played=20, outcome="-9", word="", resumed=again, left=left)


@contextmanager
def program(words: Sequence[str], folder: Path) -> Iterator[Run]:
    """A command on a terminal of its own that has said its first words."""
    scratch = folder / f"tmp-{time.monotonic_ns()}"
    scratch.mkdir()
    terminal, its_end = pty.openpty()
    environment = child_environment({MARK: folder.name, "TMPDIR": str(scratch), "TERM": "xterm"})
    command = subprocess.Popen(words, stdin=its_end, stdout=its_end, stderr=its_end, text=True, env=environment)
    os.close(its_end)
    try:
        assert select.select([terminal], [], [], MINUTE)[0] and os.read(terminal, 1), f"{words} says nothing"
        yield Run(command, folder / "run", scratch, folder.name)
    finally:
        command.kill()
        command.wait()
        os.close(terminal)


def main() -> int:
    """Print the table; 1 when a line of it is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("kinds", nargs="*", help=", ".join(ALL))
    asked = parser.parse_args()
    moments, lines = random.Random(asked.seed), list[Killed]()
    sys.stdout.write("| kind | at, s | episodes | the command | resumed after | left |\n|---|---|---|---|---|---|\n")
    for number in range(asked.times):
        for kind in asked.kinds or ALL:
            with tempfile.TemporaryDirectory(prefix=f"kill-{number}-") as folder:
                wait, playing = moments.uniform(0, LATEST), number % 3 > 0
                lines.append(kill(kind, Path(folder), wait, playing=playing))
            sys.stdout.write(f"{lines[-1]}\n")
            sys.stdout.flush()
    wrong = [line for line in lines if not line.well]
    sys.stdout.write(f"{len(lines)} kills, {len(wrong)} of them not as they should be\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
