"""What it takes to start: CPU time of the command line before it does anything, and a stage against a bare Ray job.

    python scripts/benchmarks/start.py [--rounds 5] [--jobs 3]

The first table is CPU seconds (user and system) of a process, the least of so many rounds in which the commands take turns, and
the same as a multiple of an interpreter that does nothing.

The second is one run each of three things in turn, the median of so many rounds: the bare job starts a Ray head, submits
`python -c pass` with Ray's own command line, follows it and ends the head; ours is `tau2rl eval` on one task of `mock`, played by
its reference path, on a head of its own; and the same in the command's own process (`--inline`). CPU is that of the command and
of every process below it, the head's too. What the stage adds to Ray is its second line less its first; what it takes without Ray
is its third. Wall times of a busy machine mean little.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tau2rl.launch import supervisor
from tau2rl.settings import child_environment

ROOT = Path(__file__).parents[2]
TAU2RL = ("-m", "tau2rl")
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import typer'": ("-c", "import typer"),
    "python -c 'import typer.rich_utils'": ("-c", "import typer.rich_utils"),
    "python -c 'import pydantic'": ("-c", "import pydantic"),
    "tau2rl --version": (*TAU2RL, "--version"),
    "tau2rl --help": (*TAU2RL, "--help"),
    "tau2rl grpo --help": (*TAU2RL, "grpo", "--help"),
    "tau2rl run --help": (*TAU2RL, "run", "--help"),
    "tau2rl report --help": (*TAU2RL, "report", "--help"),
    "tau2rl config show": (*TAU2RL, "config", "show"),
    "tau2rl bench --list": (*TAU2RL, "bench", "--list"),
}
STAGE = [*TAU2RL, "eval", "--domains", "mock", "--task-split", "base", "--limit", "1", "--num-samples", "1"]
STAGE += ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted"]
BARE, OURS, INLINE = "bare Ray job, `python -c pass`", "`tau2rl eval`, one episode", "`tau2rl eval --inline`, the same"
RAY = ("-m", "ray.scripts.scripts")
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it Ray listens to the network
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}


def spent() -> float:
    """CPU seconds of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def python(*words: str, **environment: str) -> None:
    """Run the interpreter with these words, in silence. Raises CalledProcessError with what it said."""
    clean = {name: value for name, value in child_environment(environment).items() if not name.startswith("RAY_ADDRESS")}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def bare_job(folder: Path) -> None:
    """What Ray takes for nothing: a head, a job, the end of both."""
    dashboard, agent, client, port = free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "metrics-export-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": folder / "ray",
    }
    try:
        python(*RAY, "start", "--head", *(f"--{name}={value}" for name, value in options.items()), **PRIVATE)
        python(*RAY, "job", "submit", "--address", address, "--", sys.executable, "-c", "pass", **PRIVATE)
    finally:
        left = supervisor.kill_below(os.getpid())  # what a head leaves behind comes to us, and is ours to end
    assert not left, f"still there: {left}"


def stage(folder: Path, *words: str) -> None:
    """One evaluation of one episode."""
    python(*STAGE, *words, TAU2RL_OUTPUTS=str(folder))


def measured(carry_out: Callable[[Path], None]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    # Ray's socket paths are below this folder and may have 107 bytes: not $TMPDIR, which can be long.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        began, cpu = time.monotonic(), spent()
        carry_out(Path(folder))
        return time.monotonic() - began, spent() - cpu


def command_rows(rounds: int) -> list[list[str]]:
    """The first table."""
    least = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            before = spent()
            python(*words)
            least[name] = min(least[name], spent() - before)
    idle = least["python -c pass"]
    rows = [[f"`{name}`", f"{seconds:.3f}", f"{seconds / idle:.0f}x"] for name, seconds in least.items()]
    return [["command", "CPU s", "against an interpreter"], *rows]


def stage_rows(rounds: int) -> list[list[str]]:
    """The second table."""
    ways: dict[str, Callable[[Path], None]] = {BARE: bare_job, OURS: stage, INLINE: lambda folder: stage(folder, "--inline")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, carry_out in ways.items():
            times[name].append(measured(carry_out))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    wall, cpu = ({name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()} for i in (0, 1))
    ratios = {name: (f"{wall[name] / wall[BARE]:.2f}x", f"{cpu[name] / cpu[BARE]:.2f}x") for name in ways}
    rows = [[name, f"{wall[name]:.1f}", ratios[name][0], f"{cpu[name]:.1f}", ratios[name][1]] for name in ways]
    return [["how", "wall s", "against the bare job", "CPU s", "against the bare job"], *rows]


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown; the first is the head."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the first table")
    parser.add_argument("--jobs", type=int, default=3, help="rounds of the second; 0: not that one")
    a = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    supervisor.adopt_orphans()
    print(table(command_rows(a.rounds)))
    if a.jobs:
        print("\n" + table(stage_rows(a.jobs)))


if __name__ == "__main__":
    main()
