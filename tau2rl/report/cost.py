"""What a run cost, and what bounds it now: where its time went, its tokens, its CPU time, and how busy its processes were.

Unlike the results, the account counts every episode: a FAILED try and a repeated one were paid for too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tau2rl.types import CallTool, Episode

BUSY = 0.85  # of one core: a process of Python with one lock has no more than 1, and is late for everybody before that
MOST = 0.5  # of the CPU time: then it is what the CPU is busy with
EPISODES = {
    "policy": "waits for the policy",
    "customer": "waits for the user simulator",
    "environment": "goes into the environment: reset, tools, grading",
    "rest": "is neither policy nor environment",
}
WALL = {
    "loading": "loading the model",
    "sampling": "sampling",
    "playing": "playing: environments and user simulator, with no turn to sample",
    "rollout": "rollouts",
    "update": "training",
    "looks": "validation",  # of older runs
    "validation": "validation",
    "saving": "saving",
    "rest": "none of the parts that are measured",
}
PLAYS = ("playing", "rollout")  # parts of the wall time of which the episodes say more


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How hard the processes of a run worked: `Load(busy=0.95, cores=2, environments=0.2)`; None is not known."""

    busy: float | None = None  # cores that the run's own process kept busy
    cores: int | None = None  # that it may use
    gpu: bool = False  # the model was computed on a GPU for it, and waiting for that looks like work
    workers_busy: float | None = None  # share of their cores that the processes that play kept busy
    environments: float | None = None  # share of the environments in the CPU time of whoever played


def bound(episodes: Mapping[str, float] | None, wall: Mapping[str, float] | None, load: Load) -> str | None:
    """What the run would have to get faster at; None where nothing is known.

    `episodes` are shares of the time of all episodes, `wall` those of a training's wall time.

    >>> bound({"policy": 0.87, "customer": 0.1, "environment": 0.02, "rest": 0.01}, None, Load(busy=0.12, cores=2))
    '87% of episode time waits for the policy, the process was busy 12% of the time'
    >>> bound(None, {"update": 0.9, "saving": 0.1}, Load(busy=1.9, cores=2))
    'the cores are the bound, 1.9 of 2 are busy; 90% of the wall time is training'
    """
    words, full = _waits(episodes, wall), _full(load)
    if full:  # whoever waits for a process that is behind waits for that process
        return f"{full}; {words}" if words else full
    return ", ".join([words, *_busy(load)]) if words else None


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
    part, share = _largest(wall)
    words = f"{share:.0%} of the wall time is {WALL[part]}"
    return f"{words}, {of_episodes}" if of_episodes and part in PLAYS else words


def _full(load: Load) -> str | None:
    """The part of the machine that has no more to give."""
    if load.busy is not None and load.cores and load.busy >= BUSY * load.cores:
        what, how = "the cores are", f"{load.busy:.1f} of {load.cores} are busy"
    elif load.busy is not None and load.busy >= BUSY and not load.gpu:
        what, how = "the process itself is", f"busy {load.busy:.0%} of the time"
    elif load.workers_busy is not None and load.workers_busy >= BUSY:
        what, how = "the workers are", f"busy {load.workers_busy:.0%} of the time"
    else:
        return None
    played_there = load.workers_busy is None or what == "the workers are"
    if played_there and load.environments is not None and load.environments >= MOST:
        return f"{what} the bound, {how}, {load.environments:.0%} of it with the CPU time of environments"
    return f"{what} the bound, {how}"


def _largest(shares: Mapping[str, float]) -> tuple[str, float]:
    name = max(shares, key=shares.__getitem__)
    return name, shares[name]


POLICY_BROKE = ("PolicyFailure", "Unavailable")  # the kinds of failure of an episode that ended in a wait for its policy


@dataclass(slots=True, kw_only=True)
class Costs:
    """Sums over episodes, none of which is kept: `Costs(episodes=2, seconds=31.5, policy_in=1800, policy_out=90)`."""

    episodes: int = 0
    untimed: int = 0  # of them, from before environments measured themselves
    seconds: float = 0.0  # of all episodes; many run at once, so it is more than the wall time
    policy_seconds: float = 0.0
    customer_seconds: float = 0.0
    environment_seconds: float = 0.0  # without the customer
    env_cpu_seconds: float = 0.0
    worker_cpu_seconds: float = 0.0  # of the processes that played for the run's own
    policy_in: int = 0  # tokens, here and below
    policy_out: int = 0
    policy_cached: int = 0
    user_in: int = 0
    user_out: int = 0

    def add(self, episode: Episode) -> None:
        """Count one episode."""
        policy = sum(turn.seconds for turn in episode.turns)
        customer, environment = _outside(episode)
        if episode.failure is not None and episode.failure.kind in POLICY_BROKE:  # its last call is in no turn
            policy = max(policy, episode.seconds - customer - environment)
        self.episodes += 1
        self.seconds += episode.seconds
        self.policy_seconds += policy
        self.customer_seconds += customer
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
class Start:
    """What one start of a run took: `Start(seconds=40.0, cpu_seconds=6.5, cores=2)`; a killed one has no `seconds`."""

    seconds: float | None  # wall
    cpu_seconds: float | None  # of the process that ran it, threads included and workers not
    cores: int = 0  # that the process may use; 0: not known
    workers: int = 0  # processes that played for it
    gpu: bool = False  # its own model, agent or in training, was on a GPU
    wall: Mapping[str, float] = field(default_factory=dict[str, float])  # seconds of each part of a training
    trained: int = 0  # tokens
    played: Costs | None = None  # where the episodes are not kept

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` reads them."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Start:
        """The inverse of `to_json`."""
        known: dict[str, Any] = {**values}
        played = known.pop("played", None)
        return Start(**known, played=None if played is None else Costs(**played))


def account(starts: Sequence[Start], costs: Costs | None = None, *, players: Sequence[Start] | None = None) -> dict[str, Any]:
    """The `cost` of a report, JSON-ready; null with a reason for what is not known.

    `costs` are those of the run's records. Without them those that its starts have summed are added up; a run that played nothing
    has none. `players` are what the process that plays took, where that is not the run's own.
    """
    played_in = starts if players is None else players
    summed = [start.played for start in played_in if start.played is not None]
    if costs is None and summed:
        costs = Costs()
        for each in summed:
            costs += each
    rollout = {} if not players else {"rollout": sum(start.seconds or 0.0 for start in players)}
    process, wall = _process(played_in), _wall(starts, rollout)
    workers = None if costs is None else _workers(played_in, costs)
    used = (workers or process)["cpu_seconds"]
    load = Load(
        busy=process["busy"],
        cores=process["cores"],
        gpu=any(start.gpu for start in starts),
        workers_busy=workers["busy"] if workers else None,
        environments=costs.env_cpu_seconds / used if costs is not None and not costs.untimed and used else None,
    )
    played = {} if costs is None else _played(costs)
    training = {} if wall is None else _trained(sum(start.trained for start in starts), wall["seconds"].get("update"))
    return {
        **played,
        "tokens": {**played.get("tokens", {}), **training},
        "wall": wall,
        "process": process,
        "workers": workers,
        "bound": bound(played.get("shares"), wall and wall["shares"], load),
    }


def _outside(episode: Episode) -> tuple[float, float]:
    """Seconds of the customer, and of the environment without it.

    Where the environment did not measure, a turn that calls tools waited for their results and any other for the customer; the
    opening is in neither.
    """
    time = episode.env_time
    if time is not None:
        return time.user_seconds, max(0.0, time.seconds - time.user_seconds)
    calls = [any(isinstance(action, CallTool) for action in turn.actions) for turn in episode.turns]
    pairs = list(zip(episode.turns, calls, strict=True))
    return sum(t.env_seconds for t, called in pairs if not called), sum(t.env_seconds for t, called in pairs if called)


def _played(costs: Costs) -> dict[str, Any]:
    """What the episodes took."""
    parts = {"policy": costs.policy_seconds, "customer": costs.customer_seconds, "environment": costs.environment_seconds}
    parts["rest"] = max(0.0, costs.seconds - sum(parts.values()))
    told, timed = costs.policy_in > 0, not costs.untimed
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
            **{name: getattr(costs, name) if told else None for name in names},
            "user_in": costs.user_in,
            "user_out": costs.user_out,
            "reason": None if told else "the policy counts no tokens",
        },
    }


def _trained(tokens: int, seconds: float | None) -> dict[str, Any]:
    return {"trained": tokens, "trained_per_second": tokens / seconds if tokens and seconds else None}


def _process(starts: Sequence[Start]) -> dict[str, Any]:
    """Wall and CPU seconds of all starts, and the cores that the process kept busy."""
    wall = [start.seconds for start in starts if start.seconds is not None]
    cpu = [start.cpu_seconds for start in starts if start.cpu_seconds is not None]
    cores = max((start.cores for start in starts), default=0) or None
    known = {"wall_seconds": sum(wall), "cpu_seconds": None, "busy": None, "cores": cores}
    if not starts:
        return {**known, "wall_seconds": None, "reason": "no start of the run says what it took"}
    if lost := len(starts) - len(wall):
        reason = f"{lost} of {len(starts)} starts ended before they could say what they took"
        return {**known, "wall_seconds": None, "reason": reason}
    if len(cpu) < len(starts):
        return {**known, "reason": "the work was done in other processes"}
    return {**known, "cpu_seconds": sum(cpu), "busy": sum(cpu) / sum(wall) if sum(wall) else None, "reason": None}


def _workers(starts: Sequence[Start], costs: Costs) -> dict[str, Any] | None:
    """The processes that played for another one; None where that played itself. `busy` is a share of their cores."""
    most = max((start.workers for start in starts), default=0)
    if not most:
        return None
    used = costs.worker_cpu_seconds or None  # they never take nothing: then nobody measured it
    whole = all(start.seconds is not None for start in starts)
    room = sum(start.workers * (start.seconds or 0.0) for start in starts) if whole else 0.0
    return {"processes": most, "cpu_seconds": used, "busy": used / room if used and room else None}


def _wall(starts: Sequence[Start], elsewhere: Mapping[str, float]) -> dict[str, Any] | None:
    """The parts of a training, and their shares of what is known; `rest` only where all starts say how long they took.

    `elsewhere` are parts that another process measured.
    """
    parts = dict(elsewhere)
    for start in starts:
        for name, value in start.wall.items():
            parts[name] = parts.get(name, 0.0) + value
    if not parts:
        return None
    ended = [start.seconds for start in starts if start.seconds is not None]
    if len(ended) == len(starts):
        parts["rest"] = max(0.0, sum(ended) - sum(parts.values()))
    return {"seconds": parts, "shares": _shares(parts)}


def _shares(parts: Mapping[str, float]) -> dict[str, float] | None:
    total = sum(parts.values())
    return {name: value / total for name, value in parts.items()} if total else None
