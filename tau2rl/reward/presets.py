"""How a grade becomes a score, as four documented presets and terms of the user's, and the proof that no failure wins.

    partial = sum_c w_c * met_c / total_c      over the kinds of check that the task has (and counts, see `basis_only`)
    shaped  = value(reward) + alpha * partial - min(c_step * steps, step_cap) - min(c_tool * invalid_calls, tool_cap)
              + sum of weight * fn(episode, grade)   over `reward.terms`

`normalize` divides the sum by the weights of the kinds that are there, so that full marks are 1 whatever a task checks.
A domain that a preset does not name, such as one of the user's, has the preset's `default`: alpha 0.3 in `cookbook`, 0.25 in
`pipeline`, 0 in `outcome` and `guarded`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tau2rl import plugins
from tau2rl.config import DOMAINS, RewardConfig
from tau2rl.errors import UserError
from tau2rl.protocols import RewardFn
from tau2rl.types import Episode, Grade

Kind = Literal["action", "communicate", "env_assertion", "db", "nl"]
KINDS: tuple[Kind, ...] = ("action", "communicate", "env_assertion", "db", "nl")
TIE = 1e-9  # scores closer than this are the same score


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What the partial score of a domain is made of and counts for: `Shaping(alpha=0.3, weights={"action": 0.7})`."""

    alpha: float
    weights: Mapping[Kind, float]  # a kind that is not named weighs 0: it is shown, and adds nothing

    def most(self, *, normalize: bool) -> float:
        """The highest partial score that a task can give.

        >>> Shaping(alpha=0.3, weights={"action": 0.5, "env_assertion": 0.25}).most(normalize=False)
        0.75
        """
        total = math.fsum(self.weights.values())
        return total if not normalize else 1.0 if total else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A term of the user's: `Term(name="my_pkg:brevity", fn=brevity, weight=0.1, low=0.0, high=1.0)`."""

    name: str
    fn: RewardFn
    weight: float
    low: float  # what `fn` declares to give at least, and at most: the proof stands on it
    high: float

    def of(self, episode: Episode, grade: Grade) -> float:
        """What it adds to the shaped score. Raises UserError when `fn` gives something else than it declares."""
        value: Any = self.fn(episode, grade)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low - TIE <= value <= self.high + TIE:
            raise UserError(
                f"reward term `{self.name}` gave {value!r} for `{episode.task.key}`, "
                f"which is no number from {self.low:g} to {self.high:g}",
                hint="`low` and `high` of the term in `reward.terms` say what it may give",
            )
        return self.weight * value

    @property
    def least(self) -> float:
        """The lowest that it can add."""
        return min(self.weight * self.low, self.weight * self.high)

    @property
    def most(self) -> float:
        """The highest that it can add."""
        return max(self.weight * self.low, self.weight * self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """A preset with a run's overrides and terms: `RewardSpec(preset="outcome", default=Shaping(alpha=0.0, weights={}))`.

    Not a config: numbers that a config leaves to the preset are filled in, names of functions are functions.
    """

    preset: str
    default: Shaping
    by_domain: Mapping[str, Shaping] = field(default_factory=dict[str, Shaping])
    normalize: bool = True
    basis_only: bool = False  # only kinds that the task's own `reward_basis` names are counted
    success: float = 1.0  # value of tau2's reward 1; between the two it is linear
    failure: float = 0.0  # value of tau2's reward 0
    step_penalty: float = 0.0  # an agent turn, repairs included
    tool_penalty: float = 0.0  # a tool call that failed, or a turn that could not be read
    step_cap: float | None = None  # at most so much in all
    tool_cap: float | None = None
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        numbers = [self.step_penalty, self.tool_penalty, self.step_cap or 0.0, self.tool_cap or 0.0]
        for shaping in (self.default, *self.by_domain.values()):
            numbers += [shaping.alpha, *shaping.weights.values()]
        if any(not math.isfinite(n) or n < 0 for n in numbers):
            raise ValueError("weights, penalties and caps are finite and not negative")

    def shaping(self, domain: str) -> Shaping:
        """The shaping of a domain: its own, else the default."""
        return self.by_domain.get(domain, self.default)

    def worst_success(self, max_turns: int) -> float:
        """The lowest shaped score of a solved task: no partial score, every penalty at its most, every term at its least."""
        steps = capped(self.step_penalty * max_turns, self.step_cap)
        # A turn may hold any number of calls, so without a cap there is no most.
        tools = capped(math.inf if self.tool_penalty else 0.0, self.tool_cap)
        return self.success - steps - tools + math.fsum(term.least for term in self.terms)

    def best_failure(self, domain: str) -> float:
        """The highest shaped score of an unsolved task: every check met, no penalty (it was cut off), every term at its most."""
        shaping = self.shaping(domain)
        return self.failure + shaping.alpha * shaping.most(normalize=self.normalize) + math.fsum(t.most for t in self.terms)


def capped(amount: float, cap: float | None) -> float:
    """A total penalty under its cap.

    >>> capped(1.5, 1.0), capped(1.5, None)
    (1.0, 1.5)
    """
    return amount if cap is None else min(amount, cap)


PRESETS: Mapping[str, RewardSpec] = {
    # The slime tau2 cookbook as printed (slime PR 1156): task + 0.3 * partial, partial = 0.7 action + 0.2 env + 0.1 communicate,
    # a plain weighted sum. It counts action checks although ACTION is hardly ever in a task's basis; DB and NL are left out.
    "cookbook": RewardSpec(
        preset="cookbook",
        default=Shaping(alpha=0.3, weights={"action": 0.7, "env_assertion": 0.2, "communicate": 0.1}),
        normalize=False,
        tool_cap=0.25,
    ),
    # What the cookbook's code does (jbarnes850/Tau2-RL-Pipeline, env.py and reward.py, defaults): other weights than printed,
    # normalized over the kinds that are present, alpha 0.25 times {retail 0.8, airline 1.0, telecom 1.6}. DB has weight 0 there,
    # and a task whose only check is DB has partial score 0. Its curriculum weights are not part of the reward.
    "pipeline": RewardSpec(
        preset="pipeline",
        default=Shaping(alpha=0.25, weights={"action": 0.5, "communicate": 0.15, "env_assertion": 0.35}),
        by_domain={
            "retail": Shaping(alpha=0.2, weights={"action": 0.5, "communicate": 0.15, "env_assertion": 0.35}),
            "telecom": Shaping(alpha=0.4, weights={"action": 0.35, "communicate": 0.35, "env_assertion": 0.3}),
        },
        tool_cap=0.25,
    ),
    # tau2's reward and nothing else. The partial score is still shown: the share of the basis that was met.
    "outcome": RewardSpec(
        preset="outcome", default=Shaping(alpha=0.0, weights=dict.fromkeys(KINDS, 1.0)), basis_only=True, tool_cap=0.25
    ),
    # The Fireworks guide to multi-turn RL: +1/-1 for the outcome, small costs of steps and invalid calls, no progress term.
    # Its 0.05 a step and 0.2 an invalid call let a failure win from 30 turns on, so ours are smaller and capped:
    # worst success 1 - 1.0 - 0.5 = -0.5 > best failure -1, for any horizon. A raised alpha pays for what the basis names only.
    "guarded": RewardSpec(
        preset="guarded",
        default=Shaping(alpha=0.0, weights=dict.fromkeys(KINDS, 1.0)),
        basis_only=True,
        success=1.0,
        failure=-1.0,
        step_penalty=0.01,
        tool_penalty=0.1,
        step_cap=1.0,
        tool_cap=0.5,
    ),
}


def spec_from(config: RewardConfig, *, max_turns: int, domains: Sequence[str] = DOMAINS) -> RewardSpec:
    """The preset with the config's overrides, proved for `domains` and conversations of up to `max_turns` agent turns.

    A given `alpha` is the weight in every domain, as it stands. Raises UserError when a term cannot be loaded, or a failure can
    score as much as a success and `allow_dominated` is off.

    >>> spec_from(RewardConfig(preset="pipeline"), max_turns=100).shaping("telecom").alpha
    0.4
    """
    spec = PRESETS[config.preset]
    if config.alpha is not None:
        alpha = config.alpha
        spec = replace(
            spec,
            default=replace(spec.default, alpha=alpha),
            by_domain={domain: replace(shaping, alpha=alpha) for domain, shaping in spec.by_domain.items()},
        )
    spec = replace(
        spec,
        normalize=spec.normalize if config.normalise is None else config.normalise,
        step_penalty=spec.step_penalty if config.step_penalty is None else config.step_penalty,
        tool_penalty=spec.tool_penalty if config.tool_penalty is None else config.tool_penalty,
        terms=tuple(
            Term(name=t.fn, fn=plugins.load_plugin(t.fn, kind="reward term"), weight=t.weight, low=t.low, high=t.high)
            for t in config.terms
        ),
    )
    if not config.allow_dominated:
        for domain in domains:
            _prove_dominance(spec, domain, max_turns)
    return spec


def margin(spec: RewardSpec, domain: str, max_turns: int) -> float:
    """By how much the worst success beats the best failure.

    >>> margin(PRESETS["guarded"], "retail", 100)
    0.5
    """
    return spec.worst_success(max_turns) - spec.best_failure(domain)


def _prove_dominance(spec: RewardSpec, domain: str, max_turns: int) -> None:
    gap = margin(spec, domain, max_turns)
    if gap > TIE:
        return
    amount = f"outscore a success by {-gap:.4g}" if gap < -TIE else "score as much as a success"
    raise UserError(
        f"a failure can {amount}: with preset `{spec.preset}` on `{domain}` and up to {max_turns} turns "
        f"the worst success scores {spec.worst_success(max_turns):.4g} and the best failure {spec.best_failure(domain):.4g}",
        hint="lower `reward.alpha`, `reward.step_penalty`, weights in `reward.terms` or `limits.max_turns`, "
        "or accept it with `reward.allow_dominated=true`",
    )
