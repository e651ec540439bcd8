"""The budget of a pipeline: its caps hold over all runs together, and its prices where a run has none of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tau2rl.config import BudgetConfig, EvalConfig, GrpoConfig, PipelineConfig, RftConfig, SeedConfig, SftConfig, StageConfig
from tau2rl.config.kinds import backend_traits
from tau2rl.errors import UserError
from tau2rl.recipes.pipeline_plan import Planned
from tau2rl.recipes.pipeline_report import finished
from tau2rl.report.cost import Costs
from tau2rl.runs import records
from tau2rl.runs.budget import (
    Spent,
    amount,
    budget_of,
    cap_words,
    caps_of,
    estimate_from,
    estimate_words,
    higher_option,
    stopped_at,
    tokens_of,
)
from tau2rl.runs.prices import common_prices, prices_of, refuse_free, refuse_unknown
from tau2rl.runs.timing import sessions, usage


def refuse_uncapped(config: PipelineConfig, runs: Sequence[Planned]) -> None:
    """Raise UserError where a run of a pipeline could not be held under the pipeline's caps, or has no price for them."""
    caps, priced = caps_of(config.budget), [_with_prices(run.config, config.budget) for run in runs]
    for run in priced:
        if caps and isinstance(run, SftConfig | GrpoConfig) and not backend_traits(run.backend).in_job:
            message = f"budget.{next(iter(caps))}: step `{run.name}` trains on `{run.backend}`, where nothing stops it at a cap"
            raise UserError(message, hint="leave the cap out; a cluster's own scheduler has limits of time")
    if config.budget.max_usd is not None:
        found = [prices_of(run) for run in priced]
        for prices in found:
            refuse_unknown(prices)
        refuse_free(found)


def estimate_words_of(config: PipelineConfig, runs: Sequence[Planned]) -> str:
    """What `budget.like` makes of a pipeline, in a line; empty without it. Raises UserError.

    An earlier report has the tokens of all its runs together: dollars are known where these runs have one price for each model.
    """
    if config.budget.like is None:
        return ""
    prices = common_prices(prices_of(_with_prices(run.config, config.budget)) for run in runs)
    return estimate_words(estimate_from(config.budget.like, config, len(runs), prices), config, prices)


class PipelineBudget:
    """What the caps of a pipeline leave for each of its runs: `PipelineBudget(config, runs).capped(runs[0])`.

    Without a cap no file of a run is read; what a finished run spent is read once.
    """

    def __init__(self, config: PipelineConfig, runs: Sequence[Planned]) -> None:
        self._config, self._runs = config, runs
        self._caps = caps_of(config.budget)
        self._finished: dict[str, Spent] = {}

    def over(self, ended: Planned | None = None) -> str:
        """Why no further run may begin, or why the one that `ended` did; empty where no cap is the reason. Raises UserError."""
        cap = self._reached([ended] if ended else [])
        if not cap:
            return ""
        spent = amount(cap, self._spent_by(self._runs).of(cap))
        return f"the cap budget.{cap} of the pipeline is reached: {spent} spent of {cap_words(cap, self._caps[cap])}"

    def higher(self) -> str:
        """The option that lifts the cap at which the pipeline has stopped; empty where none did. Raises UserError."""
        cap = self._reached(self._runs)
        return higher_option(cap, max(self._caps[cap], self._spent_by(self._runs).of(cap) or 0.0)) if cap else ""

    def _reached(self, ended: Sequence[Planned]) -> str:
        """The cap that is spent, or that left one of these runs too little for its next episode or step."""
        if not self._caps:
            return ""
        spent = self._spent_by(self._runs)
        full = [cap for cap, value in self._caps.items() if (spent.of(cap) or 0.0) >= value]
        for planned in (each for each in ended if not finished(each)):
            own, left = caps_of(budget_of(planned.config)), self._left(planned)
            cap, _ = stopped_at(planned.folder, left)
            full += [cap] if cap in left and left[cap] < own.get(cap, math.inf) else []
        return full[0] if full else ""

    def _left(self, planned: Planned) -> dict[str, float]:
        """What the other runs have left of the pipeline's caps."""
        others = self._spent_by([each for each in self._runs if each is not planned]) if self._caps else Spent()
        return {cap: value - (others.of(cap) or 0) for cap, value in self._caps.items()}

    def capped(self, planned: Planned) -> StageConfig:
        """The config of a run under what the other runs have left; its own caps hold too. Raises UserError."""
        own = caps_of(budget_of(planned.config))
        caps = {cap: min(value, own.get(cap, math.inf)) for cap, value in self._left(planned).items()}
        return _with_prices(planned.config, self._config.budget, caps)

    def _spent_by(self, runs: Sequence[Planned]) -> Spent:
        """At the pipeline's prices; dollars of what has no price are not in it."""
        found = [self._spent(planned) for planned in runs]
        return Spent(
            tokens=sum(one.tokens for one in found),
            usd=sum(one.usd or 0.0 for one in found),
            seconds=sum(one.seconds for one in found),
        )

    def _spent(self, planned: Planned) -> Spent:
        if planned.label in self._finished:
            return self._finished[planned.label]
        ended = finished(planned)
        spent = _spent(planned.folder, _with_prices(planned.config, self._config.budget))
        if ended:
            self._finished[planned.label] = spent
        return spent


def _with_prices(config: StageConfig, budget: BudgetConfig, caps: Mapping[str, float] | None = None) -> StageConfig:
    """A run of a pipeline at the pipeline's prices, where it has none of its own."""
    own = budget_of(config)
    fields = type(own).model_fields
    names = [name for name in ("usd_per_hour", "policy_price", "user_price") if name in fields]
    prices = {name: getattr(budget, name) for name in names if getattr(own, name) is None}
    update = {**prices, **{name: value for name, value in (caps or {}).items() if name in fields}}
    return config.model_copy(update={"budget": own.model_copy(update=update)})


def _spent(run: Path, config: StageConfig) -> Spent:
    """What all sessions of a run have spent: tokens from its episodes, or from what its sessions have summed."""
    costs = Costs()
    if isinstance(config, EvalConfig | SeedConfig | RftConfig) and config.plays:
        for record in records.read_run(run):
            costs.add(record.episode)
    for session in sessions(run):
        costs += session.played or Costs()
    seconds, _ = usage(run)
    return Spent(tokens=tokens_of(costs), usd=prices_of(config).usd(costs, seconds), seconds=seconds)
