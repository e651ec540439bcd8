"""What a run has spent and will spend, and the cap before which it stops. Dollars: `prices.py`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from tau2rl.config import GrpoConfig, PipelineConfig, SftConfig, StageConfig, TrainBudgetConfig
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.report.cost import Costs
from tau2rl.report.tables import amounts, dollars, duration, exact, price_words, quantity
from tau2rl.runs.files import read_json, write_json
from tau2rl.runs.folder import RunFolder, stage_of
from tau2rl.runs.prices import HOUR, NO_MODEL, OF_THE_MACHINE, Prices, prices_of
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.runs.timing import sessions, usage
from tau2rl.types import Episode, Fault, Status

log = logging.getLogger(__name__)  # what it says people are told, see `launch/entry.py`

TOKENS = ("policy_in", "policy_out", "policy_cached", "user_in", "user_out")
STOPPED = "stopped.json"  # of a session: the cap that ended it
PILOT = 4  # episodes that go on at once while no more have ended, where a cap must hold and nobody knows yet what one takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """`Spent(tokens=900, usd=0.01, seconds=3.0)`; `usd` None: something has no price."""

    tokens: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0

    def of(self, cap: str) -> float | None:
        """In the unit of a cap."""
        return {"max_tokens": self.tokens, "max_usd": self.usd, "max_hours": self.seconds / HOUR}[cap]


def tokens_of(costs: Costs) -> int:
    """Read and written by both models."""
    return costs.policy_in + costs.policy_out + costs.user_in + costs.user_out


def budget_of(config: StageConfig) -> TrainBudgetConfig:
    """The budget of a stage."""
    return cast("TrainBudgetConfig", getattr(config, "budget", TrainBudgetConfig()))


def caps_of(budget: TrainBudgetConfig) -> dict[str, float]:
    """The caps that are set, by name."""
    found = {name: getattr(budget, name, None) for name in ("max_usd", "max_tokens", "max_hours")}
    return {name: value for name, value in found.items() if value is not None}


def budget_option(cap: str) -> str:
    """What is typed for a cap."""
    return f"--{cap.replace('_', '-')}"


def stopped_at(run: Path, caps: Mapping[str, float]) -> tuple[str, float]:
    """The cap at which the last session of a run has stopped, and what was spent by then; ("", 0.0) where none did.

    Nor where `caps`, those of today, have it higher or not at all: a start since then ended before its session.
    """
    file = run / "logs" / "latest" / STOPPED
    values = read_json(file) if file.exists() else {}
    cap = values.get("cap", "")
    lifted = "value" in values and caps.get(cap, math.inf) > values["value"]  # an older version kept none
    return ("", 0.0) if lifted else (cap, values.get("spent") or 0.0)


def higher_option(cap: str, reached: float) -> str:
    """What is typed to go on behind a cap: twice of what was reached.

    >>> higher_option("max_tokens", 1200), higher_option("max_usd", 0.0004)
    ('--max-tokens 2400', '--max-usd 0.0008')
    """
    return f"{budget_option(cap)} {2 * reached:{'.0f' if cap == 'max_tokens' else '.3g'}}"


@dataclass(slots=True, kw_only=True)
class Meter:
    """What a run spends, in `unit`s that are alike: episodes, or steps. It says how many more may begin under its caps."""

    config: StageConfig
    unit: str  # "episodes" or "steps"
    total: int  # units of the whole run
    at_once: int = 1  # units that go on side by side
    before: Costs = field(default_factory=Costs)  # of earlier sessions
    now: Costs = field(default_factory=Costs)  # of this one
    seconds_before: float = 0.0
    stepping: float = 0.0  # of them, in steps of a training
    largest_before: dict[str, float] = field(default_factory=dict[str, float])  # of the steps of earlier sessions
    clock: Callable[[], float] = time.monotonic
    began: float = -1.0  # by the clock; default: now
    stopped: str = ""  # the cap that ended the run
    logs: Path | None = None  # of this session
    estimate: dict[str, Any] | None = None
    prices: Prices = field(init=False)
    units: int = 0  # that ended, and say what others take
    _sum: Spent = Spent()
    _most: Spent = Spent()

    def __post_init__(self) -> None:
        self.prices = prices_of(self.config)
        self.began = self.clock() if self.began < 0 else self.began

    @property
    def budget(self) -> TrainBudgetConfig:
        """The settings."""
        return budget_of(self.config)

    @property
    def spent(self) -> Spent:
        """So far, in all sessions."""
        costs = replace(self.before)
        costs += self.now
        seconds = self.seconds_before + self.clock() - self.began
        return Spent(tokens=tokens_of(costs), usd=self.prices.usd(costs, seconds), seconds=seconds)

    def had(self, episode: Episode) -> None:
        """Take over an episode of an earlier session."""
        self._episode(self.before, episode)

    def ended(self, episode: Episode) -> None:
        """Count a try of an episode that ended now."""
        self._episode(self.now, episode)
        self.say_estimate()

    def _episode(self, costs: Costs, episode: Episode) -> None:
        one = Costs()
        one.add(episode)
        costs += one
        took = Spent(tokens=tokens_of(one), usd=self.prices.usd(one, 0.0), seconds=episode.seconds)
        self.count(took, known=took.tokens > 0 or episode.status is not Status.FAILED)
        self._refuse_uncounted(one, episode)

    def _refuse_uncounted(self, one: Costs, episode: Episode) -> None:
        """Raise RunIncomplete where a model answered, its tokens are under a cap, and its server counts none."""
        # A user that failed may not have answered once; only its time says whether it was asked.
        user = one.user_seconds > 0 and (episode.failure is None or episode.failure.fault is not Fault.USER)
        uncounted = {
            "policy": self.prices.policy if episode.turns and not one.policy_in else NO_MODEL,
            "user simulator": self.prices.user if user and not one.user_in else NO_MODEL,
        }
        for name, price in uncounted.items():
            for cap in caps_of(self.budget) if price is not NO_MODEL else ():
                if cap == "max_tokens" or (cap == "max_usd" and price is not OF_THE_MACHINE):
                    raise RunIncomplete(f"budget.{cap} cannot be held: the {name}'s server counts no tokens")

    def count(self, unit: Spent, number: int = 1, *, known: bool = True) -> None:
        """Take in what a unit took; `number`: so many, in the mean.

        `known`: it says what others take. A failure that took no tokens does not: it is no unit of a pilot or an estimate.
        """
        one, total, most = unit, self._sum, self._most
        self.units += number if known else 0
        self._sum = Spent(
            tokens=total.tokens + one.tokens * number,
            usd=(total.usd or 0.0) + (one.usd or 0.0) * number,
            seconds=total.seconds + one.seconds * number,
        )
        self._most = Spent(
            tokens=max(most.tokens, one.tokens), usd=max(most.usd or 0.0, one.usd or 0.0), seconds=max(most.seconds, one.seconds)
        )

    @contextmanager
    def step(self) -> Generator[None]:
        """Count what runs inside as one step."""
        before, began = replace(self.now), self.clock()
        yield
        tokens, usd = tokens_of(self.now) - tokens_of(before), self.prices.usd(self.now, 0.0)
        dollars = None if usd is None else usd - (self.prices.usd(before, 0.0) or 0.0)
        self.count(Spent(tokens=tokens, usd=dollars, seconds=self.clock() - began))

    def count_done(self, steps: int) -> None:
        """Let what earlier sessions took stand for the steps that are done, each alike."""
        if steps:
            usd = self.prices.usd(self.before, 0.0)
            tokens, dollars = tokens_of(self.before) // steps, None if usd is None else usd / steps
            self.count(Spent(tokens=tokens, usd=dollars, seconds=self.stepping / steps), steps)
            most, known = self._most, self.largest_before
            more = max(most.tokens, int(known.get("tokens", 0)))
            usd = (most.usd or 0.0) * (more / most.tokens if most.tokens else 1.0)
            self._most = Spent(tokens=more, usd=usd, seconds=max(most.seconds, known.get("seconds", 0.0)))

    @property
    def largest(self) -> dict[str, float]:
        """What the dearest unit took, for the sessions behind this one."""
        return {"tokens": self._most.tokens, "seconds": self._most.seconds}

    def begin_in(self, folder: RunFolder) -> None:
        """Take over what earlier sessions took in time, and say what it will cost, where `budget.like` names a run.

        Raises UserError.
        """
        self.seconds_before, self.began, self.logs = usage(folder.path, but=folder.logs)[0], folder.opened, folder.logs
        if self.budget.like is not None:
            self._say(estimate_from(self.budget.like, self.config, self.total))

    def room(self, in_flight: int = 0) -> float:
        """How many more may begin, where each may take as much as the dearest did; `inf` without a cap."""
        caps = caps_of(self.budget)
        if not caps:
            return math.inf
        spent = self.spent
        rooms = {cap: self._room_under(cap, value - (spent.of(cap) or 0.0)) - in_flight for cap, value in caps.items()}
        tightest = min(rooms, key=rooms.__getitem__)
        self.stopped = tightest if rooms[tightest] <= 0 and not in_flight else ""
        return max(0, min(rooms[tightest], max(PILOT, self.units) - in_flight))  # no more at once than are known already

    def _room_under(self, cap: str, left: float) -> float:
        """How many may go on at once with so much left under a cap."""
        most, hours = self._most, self._most.seconds / HOUR
        match cap:
            case "max_tokens":
                return _fit(left, most.tokens)
            case "max_usd":  # side by side they share the hour
                return _fit(left - hours * (self.prices.hour or 0.0), most.usd or 0.0)
            case _:
                return math.inf if left > 0 and left >= hours else 0

    def over(self, done: int) -> bool:
        """Whether a cap ends the run here, behind so many units; people are told, also what it will cost once that is known."""
        self.say_estimate()
        if done >= self.total:
            self.stopped = ""
        elif self.room() <= 0 and self.stopped:
            log.info(self.words())
            if self.logs is not None:
                value, spent = caps_of(self.budget)[self.stopped], self.spent.of(self.stopped)
                write_json(self.logs / STOPPED, {"cap": self.stopped, "value": value, "spent": spent})
        return bool(self.stopped)

    def stop(self, step: int) -> None:
        """Raise RunIncomplete where `over` has found a cap: asked once, because the clock goes on while the step is saved."""
        if self.stopped:
            last = f"step {step} of {self.total} is the last that the budget allows, and it is kept"
            raise RunIncomplete(last if step else f"the budget allows none of the {quantity(self.total, 'step')}")

    def words(self) -> str:
        """Why the run stopped, and how it goes on."""
        cap = self.stopped
        hour = self._most.seconds / HOUR * (self.prices.hour or 0.0) if cap == "max_usd" else 0.0
        most = (self._most.of(cap) or 0.0) + hour
        allowed, spent = cap_words(cap, caps_of(self.budget)[cap]), amount(cap, self.spent.of(cap))
        each = f", and one of the {self.unit} took up to {amount(cap, most)}" if most else ""
        goes_on = f"to go on, resume with a higher `{budget_option(cap)}`"
        return f"stopped at the cap budget.{cap} = {allowed}: {spent} spent{each}; {goes_on}"

    def say_estimate(self) -> None:
        """Say what it will cost once the first units have ended, where somebody would want to know."""
        enough = min(PILOT, self.total) if self.unit == "episodes" else 1
        if self.estimate is None and enough <= self.units < self.total and (self.prices.any or caps_of(self.budget)):
            share, side_by_side = self.total / self.units, max(1, min(self.at_once, self.total))
            seconds, total = self._sum.seconds * share / side_by_side, self._sum
            of_tokens = None if self.spent.usd is None else (total.usd or 0.0) * share
            usd = None if of_tokens is None else of_tokens + seconds / HOUR * (self.prices.hour or 0.0)
            basis = f"the first {self.units:,} {self.unit}" if self.units > 1 else f"the first of the {self.unit}"
            self._say({"tokens": round(total.tokens * share), "usd": usd, "hours": seconds / HOUR, "basis": basis})

    def _say(self, estimate: Mapping[str, Any]) -> None:
        self.estimate = {**estimate, "unit": self.unit, "total": self.total}
        log.info(estimate_words(self.estimate, self.config))

    def account(self) -> dict[str, Any] | None:
        """The `budget` of a report; None where nothing has a price, a cap or an estimate."""
        caps, spent = caps_of(self.budget), self.spent
        if not caps and not self.prices.any and self.estimate is None:
            return None
        return {
            "caps": caps,
            "spent": {"tokens": spent.tokens, "usd": spent.usd, "hours": spent.seconds / HOUR},
            "prices": self.prices.to_json(),
            "estimate": self.estimate,
            "stopped": self.stopped or None,
        }


def step_meter(config: StageConfig, folder: RunFolder, *, total: int, now: Costs | None = None) -> Meter:
    """The meter of a training, with what its earlier sessions took; `now`: where the tokens of this one are summed."""
    meter = Meter(config=config, unit="steps", total=total, now=now or Costs())
    for session in sessions(folder.path):
        meter.before += session.played or Costs()
        for name, value in session.largest_step.items():
            meter.largest_before[name] = max(value, meter.largest_before.get(name, 0.0))
        meter.stepping += sum(value for phase, value in session.wall.items() if phase != "loading")
    meter.begin_in(folder)
    return meter


def estimate_from(like: Path, config: StageConfig, total: int, prices: Prices | None = None) -> dict[str, Any]:
    """What so many episodes, steps or (of a pipeline) runs take when each takes what one did in an earlier run.

    At `prices`, else those of the settings. Raises UserError.
    """
    file, kind, trains = like.expanduser() / REPORT, stage_of(config), isinstance(config, SftConfig | GrpoConfig)
    if not file.exists():
        raise UserError(f"budget.like: `{like}` has no report", hint="name the folder of a finished run of the kind")
    report = read_report(file)
    if (trains or isinstance(config, PipelineConfig)) and report["stage"] != kind:
        raise UserError(f"budget.like: `{like}` is a run of `{report['stage']}`, and this is one of `{kind}`")
    cost: Mapping[str, Any] = report.get("cost") or {}
    process: Mapping[str, Any] = cost.get("process") or {}
    seconds: float | None = cost.get("seconds", process.get("wall_seconds"))
    if isinstance(config, PipelineConfig):
        units, unit = len(cost.get("runs") or ()), "runs"
    elif trains:
        units, unit = int(report["training"].get("steps") or 0), "steps"
    else:
        units, unit = int(cost.get("episodes") or 0), "episodes"
    if not units:
        raise UserError(f"budget.like: `{like}` does not say what its {unit} took", hint="name another run")
    counted = cast("Mapping[str, int | None]", cost.get("tokens") or {})
    costs, prices = Costs(**{name: counted.get(name) or 0 for name in TOKENS}), prices or prices_of(config)
    _refuse_unplayed(like, costs, prices)
    usd, share = None if seconds is None and prices.hour else prices.usd(costs, seconds or 0.0), total / units
    return {
        "tokens": round(tokens_of(costs) * share),
        "usd": None if usd is None else usd * share,
        "hours": None if seconds is None else seconds / HOUR * share,
        "basis": f"{quantity(units, unit.removesuffix('s'))} of `{like}`",
        "unit": unit,
        "total": total,
    }


def _refuse_unplayed(like: Path, costs: Costs, prices: Prices) -> None:
    """Raise UserError where tokens of a model cost something, and its part in the run like this one took none."""
    read = {"agent": (prices.policy, costs.policy_in), "user simulator": (prices.user, costs.user_in)}
    for name, (price, tokens) in read.items():
        if price is not None and (price.read or price.write) and not tokens:
            hint = f"name a run whose {name} is a model too; without `--like` the first episodes say what one takes"
            raise UserError(
                f"budget.like: the {name} of `{like}` read no tokens, so it does not say what a model's cost", hint=hint
            )


def tell_estimate(config: StageConfig, total: int) -> None:
    """Tell people what `budget.like` makes of the run. Raises UserError."""
    like = budget_of(config).like
    if like is not None:
        log.info(estimate_words(estimate_from(like, config, total), config))


def estimate_words(estimate: Mapping[str, Any], config: StageConfig, prices: Prices | None = None) -> str:
    """An estimate in a line: what, from what, at which prices, and where a cap ends it."""
    hours, known = estimate["hours"], prices or prices_of(config)
    taken = amounts(estimate["tokens"], estimate["usd"], None if hours is None else hours * HOUR)
    total = quantity(estimate["total"], estimate["unit"].removesuffix("s"))
    words = "; ".join(filter(None, [f"estimate for {total}: {taken}, from {estimate['basis']}", price_words(known.to_json())]))
    for cap, value in caps_of(budget_of(config)).items():
        expected = estimate[{"max_usd": "usd", "max_tokens": "tokens", "max_hours": "hours"}[cap]]
        if expected is not None and expected > value:
            at = math.floor(estimate["total"] * value / expected)
            words += f"; more than budget.{cap} = {cap_words(cap, value)}, which is reached after about {at:,}"
    return words


def _fit(left: float, each: float) -> float:
    """How many fit into what is left."""
    if left <= 0:
        return 0
    return math.floor(left / each) if each else math.inf


def amount(cap: str, value: float | None) -> str:
    """So much of what a cap is of.

    >>> amount("max_usd", 0.5), amount("max_tokens", 1200), amount("max_hours", 0.001)
    ('$0.50', '1,200 tokens', '3.6 s')
    """
    match cap:
        case "max_usd":
            return dollars(value)
        case "max_tokens":
            return quantity(round(value or 0), "token")
        case _:
            return duration(None if value is None else value * HOUR)


def cap_words(cap: str, value: float) -> str:
    """A cap as it is set, not rounded.

    >>> cap_words("max_hours", 12345.678), cap_words("max_hours", 0.001), cap_words("max_usd", 0.104), cap_words("max_usd", 5)
    ('12,345.678 hours', '0.001 hours (3.6 s)', '$0.104', '$5.00')
    """
    if cap == "max_tokens":
        return amount(cap, value)
    if cap == "max_usd":
        return f"${exact(value, 2)}"
    words = "1 hour" if value == 1 else f"{exact(value)} hours"
    return f"{words} ({amount(cap, value)})" if value < 1 else words
