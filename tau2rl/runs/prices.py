"""What tokens and hours cost in dollars: litellm's price list, or what the settings say."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tau2rl.config import EvalConfig, GrpoConfig, PipelineConfig, RftConfig, SeedConfig, StageConfig, TrainBudgetConfig
from tau2rl.config.kinds import POLICIES
from tau2rl.errors import UserError
from tau2rl.report.cost import Costs
from tau2rl.report.tables import NOT_ASKED

MILLION, HOUR = 1_000_000, 3600.0
LIST = "model_prices_and_context_window_backup.json"  # the list that litellm brings, and reads where it may not ask for another


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars a token: `Price(read=4e-7, write=1.6e-6, cached=1e-7, source="gpt-4.1-mini, litellm 1.106.2")`."""

    read: float = 0.0
    write: float = 0.0
    cached: float = 0.0  # of what was read, when the server had it already
    source: str

    def to_json(self) -> dict[str, Any]:
        """Dollars a million tokens, and who says so."""
        return {name: getattr(self, name) * MILLION for name in ("read", "write", "cached")} | {"source": self.source}


NO_MODEL = Price(source=NOT_ASKED)
OWN_SERVERS = "for servers of your own, what an hour of them costs: `--set budget.usd_per_hour=2`"
OF_THE_MACHINE = Price(source="in the price of an hour")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of the agent's tokens, the user simulator's, and an hour; None is not known."""

    policy: Price | None
    user: Price | None
    hour: float | None

    def usd(self, costs: Costs, seconds: float) -> float | None:
        """Dollars for so many tokens and so much time; None where a model has no price."""
        if self.policy is None or self.user is None:
            return None
        cached = min(costs.policy_cached, costs.policy_in)
        policy = (
            (costs.policy_in - cached) * self.policy.read + cached * self.policy.cached + costs.policy_out * self.policy.write
        )
        user = costs.user_in * self.user.read + costs.user_out * self.user.write
        return policy + user + seconds / HOUR * (self.hour or 0.0)

    @property
    def any(self) -> bool:
        """Whether anything costs dollars, as far as is known."""
        models = [price for price in (self.policy, self.user) if price is not None]
        return bool(self.hour) or any(price.read or price.write for price in models)

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        models = {name: price and price.to_json() for name, price in (("policy", self.policy), ("user", self.user))}
        return {**models, "hour": self.hour}


@cache
def price_list() -> tuple[Mapping[str, Any], str]:
    """litellm's prices by model, and which list that is: litellm's version and the hash of the file, which has no date."""
    found = importlib.util.find_spec("litellm")
    file = Path(found.origin).with_name(LIST) if found and found.origin else None
    if file is None or not file.exists():
        return {}, "no list: litellm is not installed"
    text = file.read_bytes()
    return json.loads(text), f"litellm {importlib.metadata.version('litellm')}, list {hashlib.sha256(text).hexdigest()[:8]}"


def listed(model: str) -> Price | None:
    """The price of a litellm model, with or without its provider's prefix; None for one that is not on the list."""
    values, words = price_list()
    provider, _, name = model.partition("/")
    entry: Mapping[str, Any] = values.get(model) or {}
    if not entry and values.get(name, {}).get("litellm_provider") == provider:
        entry = values[name]
    read, write = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if read is None or write is None:
        return None
    return Price(read=read, write=write, cached=entry.get("cache_read_input_token_cost", read), source=f"{model}, {words}")


def prices_of(config: StageConfig) -> Prices:
    """What the settings of a stage say, and litellm's list; of a pipeline what it gives to its steps."""
    budget: TrainBudgetConfig = getattr(config, "budget", TrainBudgetConfig())
    hour = budget.usd_per_hour
    if isinstance(config, PipelineConfig):
        return Prices(policy=_given(config.budget.policy_price), user=_given(config.budget.user_price), hour=hour)
    if not isinstance(config, EvalConfig | SeedConfig | RftConfig | GrpoConfig) or not getattr(config, "plays", True):
        return Prices(policy=NO_MODEL, user=NO_MODEL, hour=hour)
    own = None if hour is None else OF_THE_MACHINE
    policy, user = _given(config.budget.policy_price), _given(config.budget.user_price)
    if isinstance(config, GrpoConfig):
        policy = policy or own
        served = config.serves_user
    else:
        agent, served = config.policy, False
        exchanges = POLICIES[agent.kind].exchanges if agent.kind in POLICIES else "tokens"
        if exchanges == "script":
            policy = NO_MODEL
        elif exchanges == "messages":
            policy = policy or listed(agent.model or "") or (own if agent.api_base else None)
        else:
            policy = policy or own
    if config.user.kind == "scripted":
        user = NO_MODEL
    elif served:
        user = user or own
    else:
        user = user or listed(config.user.model) or (own if config.user.api_base else None)
    return Prices(policy=policy, user=user, hour=hour)


def common_prices(prices: Iterable[Prices]) -> Prices:
    """The prices of runs that are summed before they are priced: what their models and hours have in common, else unknown.

    A model that one of them does not ask takes no tokens there.
    """
    found = list(prices)
    hours = {each.hour or 0.0 for each in found}
    models: list[Price | None] = []
    for name in ("policy", "user"):
        asked = {getattr(each, name) for each in found} - {NO_MODEL}
        models.append(NO_MODEL if not asked else asked.pop() if len(asked) == 1 and len(hours) == 1 else None)
    return Prices(policy=models[0], user=models[1], hour=hours.pop() if len(hours) == 1 else None)


def refuse_unpriced(config: StageConfig) -> str:
    """What the prices are, for people. Raises UserError where dollars are capped and something has no price."""
    prices, budget = prices_of(config), getattr(config, "budget", TrainBudgetConfig())
    if budget.max_usd is not None:
        refuse_unknown(prices)
        if not prices.any:
            raise UserError("budget.max_usd: nothing here costs dollars", hint=OWN_SERVERS)
    return "; ".join(f"{name}: {price.source}" for name, price in (("agent", prices.policy), ("user", prices.user)) if price)


def refuse_free(prices: Iterable[Prices]) -> None:
    """Raise UserError where nothing costs dollars, and a cap of them would never be reached."""
    if not any(each.any for each in prices):
        raise UserError("budget.max_usd: nothing here costs dollars", hint=OWN_SERVERS)


def refuse_unknown(prices: Prices) -> None:
    """Raise UserError where a model has no price, and so no dollars can be capped."""
    unknown = [name for name, price in (("policy", prices.policy), ("user", prices.user)) if price is None]
    if unknown:
        names = " and ".join(f"budget.{name}_price" for name in unknown)
        message = f"budget.max_usd: no price is known of the tokens of {' and '.join(unknown)} ({price_list()[1]})"
        hint = f"give {names}, dollars for a million read and written: `--set 'budget.{unknown[0]}_price=[2,8]'`\n{OWN_SERVERS}"
        raise UserError(message, hint=hint)


def _given(price: tuple[float, float] | None) -> Price | None:
    if price is None:
        return None
    read, write = (dollars / MILLION for dollars in price)
    return Price(read=read, write=write, cached=read, source="given in the settings")
