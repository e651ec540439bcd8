"""What a run would have to get faster at, as one sentence: what its time waited for, and which part of the machine is full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BUSY = 0.85  # of one core: a process of Python with one lock has no more than 1, and is late for everybody before that
MOST = 0.5  # of the CPU time: then it is what the CPU is busy with
EPISODES = {
    "policy": "waits for the policy",
    "user": "waits for the user simulator",
    "environment": "goes into the environment: reset, tools, grading",
    "rest": "is neither policy nor environment",
}
WALL = {
    "loading": "loading the model",
    "sampling": "sampling",
    "playing": "environments and user simulator, with no turn to sample",
    "rollout": "rollouts",
    "update": "training",
    "validation": "validation",
    "saving": "saving",
    "rest": "outside the phases that are measured",
}
WITH_EPISODES = ("playing", "rollout")  # phases of the wall time of which the episodes say more


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How hard the processes of a run worked: `Load(busy=0.95, cores=2, environments=0.2)`; None is not known."""

    busy: float | None = None  # cores that the run's own process kept busy
    cores: int | None = None  # that it may use
    gpu: bool = False  # the model was computed on a GPU for it, and waiting for that looks like work
    workers_busy: float | None = None  # share of their cores that the worker processes kept busy
    environments: float | None = None  # share of the environments in the CPU time of whoever ran the episodes


def bottleneck(episodes: Mapping[str, float] | None, wall: Mapping[str, float] | None, load: Load) -> str | None:
    """The sentence; None where nothing is known.

    `episodes` are shares of the time of all episodes, `wall` those of a training's wall time.

    >>> bottleneck({"policy": 0.87, "user": 0.1, "environment": 0.02, "rest": 0.01}, None, Load(busy=0.12, cores=2))
    '87% of episode time waits for the policy, the process was busy 12% of the time'
    >>> bottleneck(None, {"update": 0.9, "saving": 0.1}, Load(busy=1.9, cores=2))
    'the CPU cores are the bottleneck, 1.9 of 2 are busy; 90% of the wall time is training'
    """
    waits, full = _waits(episodes, wall), _full(load)
    if full:  # whoever waits for a process that is behind waits for that process
        return f"{full}; {waits}" if waits else full
    return ", ".join([waits, *_busy(load)]) if waits else None


def _busy(load: Load) -> list[str]:
    own = [] if load.busy is None else [f"the process was busy {load.busy:.0%} of the time"]
    return own if load.workers_busy is None else [*own, f"its workers {load.workers_busy:.0%}"]


def _waits(episodes: Mapping[str, float] | None, wall: Mapping[str, float] | None) -> str | None:
    of_episodes = None
    if episodes:
        part, share = _largest(episodes)
        of_episodes = f"{share:.0%} of episode time {EPISODES[part]}"
    if not wall:
        return of_episodes
    phase, share = _largest(wall)
    words = f"{share:.0%} of the wall time is {WALL.get(phase, phase)}"
    return f"{words}, {of_episodes}" if of_episodes and phase in WITH_EPISODES else words


def _full(load: Load) -> str | None:
    """The part of the machine that has no more to give."""
    if load.busy is not None and load.cores and load.busy >= BUSY * load.cores:
        what, how = "the CPU cores are", f"{load.busy:.1f} of {load.cores} are busy"
    elif load.busy is not None and load.busy >= BUSY and not load.gpu:
        what, how = "the process itself is", f"busy {load.busy:.0%} of the time"
    elif load.workers_busy is not None and load.workers_busy >= BUSY:
        what, how = "the workers are", f"busy {load.workers_busy:.0%} of the time"
    else:
        return None
    environments_are_there = load.workers_busy is None or what == "the workers are"
    if environments_are_there and load.environments is not None and load.environments >= MOST:
        return f"{what} the bottleneck, {how}, {load.environments:.0%} of it with the CPU time of environments"
    return f"{what} the bottleneck, {how}"


def _largest(shares: Mapping[str, float]) -> tuple[str, float]:
    name = max(shares, key=shares.__getitem__)
    return name, shares[name]
