"""What a run cost: where its time went, its tokens, its CPU time, and how busy its processes were.

Unlike the results, the costs count every episode: a FAILED try and a repeated one were paid for too.
What the numbers say together, as one sentence, is the bottleneck: what time waited for, which part of the machine is full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from tau2rl.types import CallTool, Episode

POLICY_BROKE = ("PolicyFailure", "Unavailable")  # the kinds of failure of an episode that ended in a wait for its policy


@dataclass(slots=True, kw_only=True)
class Costs:
    """Sums over episodes, none of which is kept: `Costs(episodes=2, seconds=31.5, policy_in=1800, policy_out=90)`."""

    episodes: int = 0
    untimed: int = 0  # of them, from before environments measured themselves
    seconds: float = 0.0  # of all episodes; many run at once, so it is more than the wall time
    policy_seconds: float = 0.0
    user_seconds: float = 0.0
    environment_seconds: float = 0.0  # without the user simulator
    env_cpu_seconds: float = 0.0
    worker_cpu_seconds: float = 0.0  # of the processes that ran episodes for the run's own
    policy_in: int = 0  # tokens, here and below
    policy_out: int = 0
    policy_cached: int = 0
    user_in: int = 0
    user_out: int = 0

    def add(self, episode: Episode) -> None:
        """Count one episode."""
        policy = sum(turn.seconds for turn in episode.turns)
        user, environment = _outside(episode)
        if episode.failure is not None and episode.failure.kind in POLICY_BROKE:  # its last call is in no turn
            policy = max(policy, episode.seconds - user - environment)
        self.episodes += 1
        self.seconds += episode.seconds
        self.policy_seconds += policy
        self.user_seconds += user
        self.environment_seconds += environment
        if episode.env_time is not None:
            self.env_cpu_seconds += episode.env_time.cpu_seconds
        elif episode.turns:
            self.untimed += 1
        self.worker_cpu_seconds += episode.worker_cpu_seconds
        for turn in episode.turns:
            self.policy_in += turn.usage.prompt_tokens
            self.policy_out += turn.usage.completion_tokens
            self.policy_cached += turn.usage.cached_tokens
        self.user_in += episode.user_usage.prompt_tokens
        self.user_out += episode.user_usage.completion_tokens

    def __iadd__(self, other: Costs) -> Costs:
        """Take the sums of another one in."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one session of a run took: `Session(seconds=40.0, cpu_seconds=6.5, cores=2)`; a killed one has no `seconds`."""

    seconds: float | None  # wall
    cpu_seconds: float | None  # of the process that ran it, threads included and workers not
    cores: int = 0  # that the process may use; 0: not known
    workers: int = 0  # processes that ran episodes for it
    gpu: bool = False  # its own model, agent or in training, was on a GPU
    wall: Mapping[str, float] = field(default_factory=dict[str, float])  # seconds of each phase of a training
    trained: int = 0  # tokens
    largest_step: Mapping[str, float] = field(default_factory=dict[str, float])  # of a training: most tokens played, most seconds
    played: Costs | None = None  # where the episodes are not kept

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` reads them."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Session:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        return TypeAdapter(Session).validate_python(dict(values))


def account(
    sessions: Sequence[Session], costs: Costs | None = None, *, rollouts: Sequence[Session] | None = None
) -> dict[str, Any]:
    """The `cost` of a report, JSON-ready; null with a reason for what is not known.

    `costs` are those of the run's records. Without them those that its sessions have summed are added up; a run without
    episodes has none. `rollouts` are what the process that runs the episodes took, where that is not the run's own.
    """
    ran_in = sessions if rollouts is None else rollouts
    summed = [session.played for session in ran_in if session.played is not None]
    if costs is None and summed:
        costs = Costs()
        for each in summed:
            costs += each
    elsewhere = {} if not rollouts else {"rollout": sum(session.seconds or 0.0 for session in rollouts)}
    process, wall = _process(ran_in), _wall(sessions, elsewhere)
    workers = None if costs is None else _workers(ran_in, costs)
    used = (workers or process)["cpu_seconds"]
    load = ProcessLoad(
        busy=process["busy"],
        cores=process["cores"],
        gpu=any(session.gpu for session in sessions),
        workers_busy=workers["busy"] if workers else None,
        environments=costs.env_cpu_seconds / used if costs is not None and not costs.untimed and used else None,
    )
    episodes = {} if costs is None else _of_episodes(costs)
    training = {} if wall is None else _trained(sum(session.trained for session in sessions), wall["seconds"].get("update"))
    return {
        **episodes,
        "tokens": {**episodes.get("tokens", {}), **training},
        "wall": wall,
        "process": process,
        "workers": workers,
        "bottleneck": bottleneck(episodes.get("shares"), wall and wall["shares"], load),
    }


def _outside(episode: Episode) -> tuple[float, float]:
    """Seconds of the user simulator, and of the environment without it.

    Where the environment did not measure, a turn that calls tools waited for their results and any other for the user; the
    opening is in neither.
    """
    time = episode.env_time
    if time is not None:
        return time.user_seconds, max(0.0, time.seconds - time.user_seconds)
    calls = [any(isinstance(action, CallTool) for action in turn.actions) for turn in episode.turns]
    pairs = list(zip(episode.turns, calls, strict=True))
    return sum(t.env_seconds for t, called in pairs if not called), sum(t.env_seconds for t, called in pairs if called)


def _of_episodes(costs: Costs) -> dict[str, Any]:
    """The costs of the episodes as the report has them."""
    parts = {"policy": costs.policy_seconds, "user": costs.user_seconds, "environment": costs.environment_seconds}
    parts["rest"] = max(0.0, costs.seconds - sum(parts.values()))
    reported, timed = costs.policy_in > 0, not costs.untimed
    names = ("policy_in", "policy_out", "policy_cached")
    return {
        "episodes": costs.episodes,
        "episode_seconds": {"total": costs.seconds, **parts},
        "shares": _shares(parts),
        "env_cpu": {
            "seconds": costs.env_cpu_seconds if timed else None,
            "per_episode": costs.env_cpu_seconds / costs.episodes if timed and costs.episodes else None,
            "reason": None if timed else f"{costs.untimed} of {costs.episodes} episodes were not measured",
        },
        "tokens": {
            **{name: getattr(costs, name) if reported else None for name in names},
            "user_in": costs.user_in,
            "user_out": costs.user_out,
            "reason": None if reported else "the policy counts no tokens",
        },
    }


def _trained(tokens: int, seconds: float | None) -> dict[str, Any]:
    return {"trained": tokens, "trained_per_second": tokens / seconds if tokens and seconds else None}


def _process(sessions: Sequence[Session]) -> dict[str, Any]:
    """Wall and CPU seconds of all sessions, and the cores that the process kept busy."""
    wall = [session.seconds for session in sessions if session.seconds is not None]
    cpu = [session.cpu_seconds for session in sessions if session.cpu_seconds is not None]
    cores = max((session.cores for session in sessions), default=0) or None
    known = {"wall_seconds": sum(wall), "cpu_seconds": None, "busy": None, "cores": cores}
    if not sessions:
        return {**known, "wall_seconds": None, "reason": "no session of the run says what it took"}
    if lost := len(sessions) - len(wall):
        reason = f"{lost} of {len(sessions)} sessions ended before they could say what they took"
        return {**known, "wall_seconds": None, "reason": reason}
    if len(cpu) < len(sessions):
        return {**known, "reason": "the work was done in other processes"}
    return {**known, "cpu_seconds": sum(cpu), "busy": sum(cpu) / sum(wall) if sum(wall) else None, "reason": None}


def _workers(sessions: Sequence[Session], costs: Costs) -> dict[str, Any] | None:
    """The processes that ran episodes for another one; None where that ran them itself. `busy` is a share of their cores."""
    most = max((session.workers for session in sessions), default=0)
    if not most:
        return None
    used = costs.worker_cpu_seconds or None  # they never take nothing: then nobody measured it
    whole = all(session.seconds is not None for session in sessions)
    room = sum(session.workers * (session.seconds or 0.0) for session in sessions) if whole else 0.0
    return {"processes": most, "cpu_seconds": used, "busy": used / room if used and room else None}


def _wall(sessions: Sequence[Session], elsewhere: Mapping[str, float]) -> dict[str, Any] | None:
    """The phases of a training, and their shares of what is known; `rest` only where all sessions say how long they took.

    `elsewhere` are phases that another process measured.
    """
    phases = dict(elsewhere)
    for session in sessions:
        for name, value in session.wall.items():
            phases[name] = phases.get(name, 0.0) + value
    if not phases:
        return None
    ended = [session.seconds for session in sessions if session.seconds is not None]
    if len(ended) == len(sessions):
        phases["rest"] = max(0.0, sum(ended) - sum(phases.values()))
    return {"seconds": phases, "shares": _shares(phases)}


def _shares(phases: Mapping[str, float]) -> dict[str, float] | None:
    total = sum(phases.values())
    return {name: value / total for name, value in phases.items()} if total else None


BUSY = 0.85  # of one core: a process of Python with one lock has no more than 1, and is late for everybody before that
MOST = 0.5  # of the CPU time: then it is what the CPU is busy with
EPISODES = {
    "policy": "waits for the policy",
    "user": "waits for the user simulator",
    "environment": "goes into the environment (reset, tools, grading)",
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
class ProcessLoad:
    """How hard the processes of a run worked: `ProcessLoad(busy=0.95, cores=2, environments=0.2)`; None is not known."""

    busy: float | None = None  # cores that the run's own process kept busy
    cores: int | None = None  # that it may use
    gpu: bool = False  # the model was computed on a GPU for it, and waiting for that looks like work
    workers_busy: float | None = None  # share of their cores that the worker processes kept busy
    environments: float | None = None  # share of the environments in the CPU time of whoever ran the episodes


def bottleneck(episodes: Mapping[str, float] | None, wall: Mapping[str, float] | None, load: ProcessLoad) -> str | None:
    """The sentence; None where nothing is known.

    `episodes` are shares of the time of all episodes, `wall` those of a training's wall time.

    >>> bottleneck({"policy": 0.87, "user": 0.1, "environment": 0.02, "rest": 0.01}, None, ProcessLoad(busy=0.12, cores=2))
    '87% of episode time waits for the policy, the process was busy 12% of the time'
    >>> bottleneck(None, {"update": 0.9, "saving": 0.1}, ProcessLoad(busy=1.9, cores=2))
    'the CPU cores are the bottleneck, 1.9 of 2 are busy; 90% of the wall time is training'
    """
    waits, full = _waits(episodes, wall), _full(load)
    if full:  # whoever waits for a process that is behind waits for that process
        return f"{full}; {waits}" if waits else full
    return ", ".join([waits, *_busy(load)]) if waits else None


def _busy(load: ProcessLoad) -> list[str]:
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


def _full(load: ProcessLoad) -> str | None:
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
