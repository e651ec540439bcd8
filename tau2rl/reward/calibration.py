"""Iterative Reward Calibration: give each tier of turn reward the sign that success has with it, then check the advantages.

One round, offline, over rollouts of the current policy on TRAIN tasks (arXiv 2604.02869, algorithm 1):
    phi_c = correlation of [tier c occurs in the rollout] with [the rollout succeeds]
    r_c   = alpha * phi_c if |phi_c| > delta else 0
then, on tasks held out from the fit: the mean advantage of each tier's turns must have the intended sign, and the mean turn
reward must correlate with success. The paper publishes neither alpha, delta nor the threshold; the defaults are those of its
independent re-implementation. A tier that occurs in (nearly) all or none of the rollouts says nothing: its value is kept.

What was found is frozen in a recipe, a file with a hash, from which `turn_table` has the rewards of a training:
{"schema": 1, "values": {"gold": 0.42, "read": 0.0, ...}, "writes_only": false, "accepted": true, "digest": "1f0c...", ...}
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from tau2rl.config import AlgoConfig, RewardConfig
from tau2rl.errors import UserError
from tau2rl.hashing import derive_seed
from tau2rl.reward.advantages import turn_advantages
from tau2rl.reward.tiers import TABLES, Tier, TierTable
from tau2rl.runs.files import read_json, write_json, writing

INTENDED: Mapping[Tier, int] = {Tier.GOLD: 1, Tier.SOFT: 1, Tier.WRITE: -1, Tier.ERROR: -1, Tier.DUPLICATE: -1}
RECIPE_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRow:
    """One rollout: `TierRow(task="retail/17", group=0, success=True, turns=((Tier.READ,), (Tier.GOLD, Tier.ERROR)))`."""

    task: str
    group: int  # which group of attempts at the task
    success: bool
    turns: tuple[tuple[Tier, ...], ...]  # [num_turns][calls of that turn], as `score_calls` gives them


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSpec:
    """The constants of a round: `CalibrationSpec(alpha=1.0, delta=0.05)`."""

    alpha: float = 1.0
    delta: float = 0.05
    min_correlation: float = 0.1
    min_support: int = 20  # rollouts with the tier, and without it
    holdout: float = 0.2  # share of the tasks
    seed: int = 300
    algo: AlgoConfig = field(default_factory=lambda: AlgoConfig(estimator="mt_gtpo"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """What a round found about one tier: `TierReport(tier=Tier.READ, support=120, phi=0.01, value=0.0, ...)`."""

    tier: Tier
    support: int  # rollouts with it, or without it, whichever is fewer
    phi: float | None  # None: it cannot be told
    value: float
    kept: str  # why the value was kept as it was; "" when it was set from phi
    intended: int  # wanted sign of the advantage; 0 = none
    advantage: float | None  # mean over the held-out turns with this tier
    immediate_advantage: float | None  # the same without future rewards, the quantity that the paper checks
    gradient_share: float  # of the held-out sum of |advantage|; a turn counts for each tier in it
    held_out_turns: int = 0  # with this tier, which the advantages are means of

    @property
    def aligned(self) -> bool | None:
        """Whether the advantage has the intended sign; None when there is none to check, or nothing to check it on."""
        if not self.intended or self.advantage is None or self.immediate_advantage is None:
            return None
        return self.advantage * self.intended > 0 and self.immediate_advantage * self.intended > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A frozen table of tier values: `Recipe(values={"gold": 0.6, "read": 0.0}, digest="1f0c...")`."""

    values: Mapping[str, float]
    digest: str  # of the values and of every constant that made them


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """A round: accepted when every checked sign is right and rewards go with success on the held-out tasks."""

    tiers: tuple[TierReport, ...]
    dead_turns: float | None  # held-out share of turns with advantage exactly 0; None without held-out turns
    correlation: float | None  # held-out, of a rollout's mean turn reward with its success
    problems: tuple[str, ...]
    recipe: Recipe

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against the recipe."""
        return not self.problems


def calibrate(
    rows: Sequence[TierRow],
    current: Mapping[Tier, float],
    spec: CalibrationSpec | None = None,
    intended: Mapping[Tier, int] = INTENDED,
) -> CalibrationReport:
    """One round over the rollouts of the current policy; `current` holds the values that are kept where nothing can be told."""
    spec = spec or CalibrationSpec()
    held_out = _held_out({row.task for row in rows}, spec)
    fit = [row for row in rows if row.task not in held_out]
    check = [row for row in rows if row.task in held_out]
    found = {tier: _fit_tier(tier, fit, current.get(tier, 0.0), spec) for tier in Tier}
    values = {tier: report.value for tier, report in found.items()}
    advantages = _advantages(check, values, spec.algo)
    immediate = _advantages(check, values, spec.algo.model_copy(update={"gamma": 0.0}))
    total = math.fsum(abs(a) for row in advantages for a in row)
    tiers = tuple(
        replace(
            found[tier],
            intended=intended.get(tier, 0),
            advantage=_mean(_at(tier, check, advantages)),
            immediate_advantage=_mean(_at(tier, check, immediate)),
            gradient_share=math.fsum(map(abs, _at(tier, check, advantages))) / total if total else 0.0,
            held_out_turns=len(_at(tier, check, advantages)),
        )
        for tier in Tier
    )
    flat = [a for row in advantages for a in row]
    correlation = _correlation(
        [_mean([_turn_reward(turn, values) for turn in row.turns]) or 0.0 for row in check], [float(row.success) for row in check]
    )
    return CalibrationReport(
        tiers=tiers,
        dead_turns=sum(a == 0.0 for a in flat) / len(flat) if flat else None,
        correlation=correlation,
        problems=tuple(_problems(tiers, correlation, spec)),
        recipe=freeze(values, spec),
    )


def phi(with_success: int, with_failure: int, without_success: int, without_failure: int) -> float | None:
    """Correlation of two yes/no variables; None when one of them never varies.

    >>> phi(30, 10, 10, 30), phi(40, 40, 0, 0)
    (0.5, None)
    """
    n1, n0 = with_success + with_failure, without_success + without_failure
    successes, failures = with_success + without_success, with_failure + without_failure
    product = n1 * n0 * successes * failures
    if not product:
        return None
    return (with_success * without_failure - with_failure * without_success) / math.sqrt(product)


def freeze(values: Mapping[Tier, float], spec: CalibrationSpec) -> Recipe:
    """The values with a digest that also names the constants behind them."""
    plain = {tier.value: values[tier] for tier in Tier if tier in values}
    content = json.dumps({"values": plain, "spec": repr(spec)}, sort_keys=True)
    return Recipe(values=plain, digest=hashlib.sha256(content.encode()).hexdigest()[:16])


def _fit_tier(tier: Tier, rows: Sequence[TierRow], current: float, spec: CalibrationSpec) -> TierReport:
    having = [(any(tier in turn for turn in row.turns), row.success) for row in rows]
    cells = [having.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
    support = min(cells[0] + cells[1], cells[2] + cells[3])
    value = phi(*cells)
    kept = ""
    if support < spec.min_support:
        kept = f"only {support} rollouts to tell by, fewer than {spec.min_support}"
    elif value is None:
        kept = "every rollout ended alike"
    new = current if kept or value is None else spec.alpha * value if abs(value) > spec.delta else 0.0
    return TierReport(
        tier=tier, support=support, phi=value, value=new, kept=kept,
        intended=0, advantage=None, immediate_advantage=None, gradient_share=0.0,
    )  # fmt: skip


def _held_out(tasks: Iterable[str], spec: CalibrationSpec) -> set[str]:
    ranked = sorted(tasks, key=lambda task: (derive_seed("calibration", spec.seed, task), task))
    return set(ranked[: math.ceil(len(ranked) * spec.holdout)])


def _turn_reward(turn: Sequence[Tier], values: Mapping[Tier, float]) -> float:
    return math.fsum(values.get(tier, 0.0) for tier in turn)


def _advantages(rows: Sequence[TierRow], values: Mapping[Tier, float], algo: AlgoConfig) -> list[list[float]]:
    """The advantage of every turn of every row, in the order of `rows`."""
    out: list[list[float]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: (rows[i].task, rows[i].group))
    for _, members in groupby(order, key=lambda i: (rows[i].task, rows[i].group)):
        group = list(members)
        rewards = [[_turn_reward(turn, values) for turn in rows[i].turns] for i in group]
        for i, row in zip(group, turn_advantages(rewards, [float(rows[i].success) for i in group], algo), strict=True):
            out[i] = row or []
    return out


def _at(tier: Tier, rows: Sequence[TierRow], advantages: Sequence[Sequence[float]]) -> list[float]:
    return [
        a for row, line in zip(rows, advantages, strict=True) for turn, a in zip(row.turns, line, strict=True) if tier in turn
    ]


def _problems(tiers: Sequence[TierReport], correlation: float | None, spec: CalibrationSpec) -> list[str]:
    problems: list[str] = []
    for report in tiers:
        if not report.intended or report.kept:
            continue
        if report.aligned is None:
            problems.append(f"`{report.tier.value}` does not occur on the held-out tasks")
        elif not report.aligned:
            want = "positive" if report.intended > 0 else "negative"
            has = f"{report.advantage:.3f} over {report.held_out_turns} held-out turns"
            against = report.phi is not None and report.phi * report.intended < 0
            why = f"; it goes with {'failure' if report.intended > 0 else 'success'}, phi {report.phi:.3f}" if against else ""
            problems.append(f"`{report.tier.value}` should have a {want} advantage, has {has}{why}")
    if correlation is None:
        problems.append("turn rewards or outcomes do not vary on the held-out tasks")
    elif correlation <= spec.min_correlation:
        problems.append(f"turn rewards correlate with success by only {correlation:.3f} on the held-out tasks")
    return problems


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    mean_x, mean_y = _mean(x), _mean(y)
    if mean_x is None or mean_y is None:
        return None
    dx, dy = [v - mean_x for v in x], [v - mean_y for v in y]
    size = math.sqrt(math.fsum(v * v for v in dx) * math.fsum(v * v for v in dy))
    return math.fsum(a * b for a, b in zip(dx, dy, strict=True)) / size if size > 1e-12 else None


def recipe_table(values: Mapping[Tier, float], *, writes_only: bool) -> TierTable:
    """The table of a recipe: each tier has its value and nothing else, as the calibration checked it."""
    return TierTable(values=dict(values), writes_only=writes_only, flat_soft=True)


def write_recipe(file: Path, content: Mapping[str, Any]) -> str:
    """Freeze a recipe; the digest that names it."""
    whole = {"schema": RECIPE_SCHEMA, **content}
    digest = _digest(whole)
    with writing(file):
        write_json(file, {**whole, "digest": digest})
    return digest


def read_recipe(file: Path) -> dict[str, Any]:
    """A recipe that may be trained with. Raises UserError: no recipe, changed since it was frozen, or one that failed."""
    if not file.is_file():
        raise UserError(f"no recipe `{file}`", hint="make one with `tau2rl calibrate RUN... --output FILE`")
    content = read_json(file)
    if content.get("schema") != RECIPE_SCHEMA or not isinstance(content.get("values"), dict):
        raise UserError(f"`{file}` is no recipe of this version", hint="make one with `tau2rl calibrate`")
    if content.get("digest") != _digest({key: value for key, value in content.items() if key != "digest"}):
        raise UserError(f"`{file}` is not what was frozen: its hash is another", hint="make it again with `tau2rl calibrate`")
    if not content.get("accepted"):
        raise UserError(f"`{file}` did not pass its check", hint="look at its `problems`")
    return content


def turn_table(reward: RewardConfig, algo: AlgoConfig) -> TierTable:
    """What a turn is worth: the recipe's table, else that of `algo.turn_rewards`. Raises UserError."""
    return TABLES[algo.turn_rewards] if reward.recipe is None else _table(reward.recipe)


@functools.cache  # an episode asks for it, and a run stands on the file as it was
def _table(file: Path) -> TierTable:
    content = read_recipe(file)
    values = cast("dict[str, float]", content["values"])
    return recipe_table({Tier(name): value for name, value in values.items()}, writes_only=bool(content["writes_only"]))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
