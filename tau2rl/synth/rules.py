"""A domain's policy as data: which rules a call breaks. Rules: `DOMAIN_rules.yaml`; what they check: `DOMAIN_checks.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

import yaml

from tau2rl.errors import UserError
from tau2rl.types import CallTool

Tables = Mapping[str, Mapping[str, Any]]  # table -> id -> row
RuleCheck = Callable[..., bool]  # (rows, user_id, call, **options) -> whether the call keeps the rule
TaskCheck = Callable[[Sequence[CallTool]], bool]  # whether the calls of a conversation, in order, keep the rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of a tool: `Rule(id="cancel.pending", check="order_status", options={"status": "pending"}, policy="An ...")`."""

    id: str
    check: str
    options: Mapping[str, Any]
    policy: str  # the sentence of the policy that it stands for, word for word
    refusal: str = ""  # what an agent says to a user who asks for what it forbids; "" where no made task does


class RuleBook:
    """The rules of one domain."""

    def __init__(self, name: str, policy: str, checks: Mapping[str, RuleCheck], task_checks: Mapping[str, TaskCheck]) -> None:
        """Raises UserError when a rule's sentence is not in `policy`: then these rules belong to another version of it."""
        text = resources.files("tau2rl.synth").joinpath(f"{name}_rules.yaml").read_text("utf-8")
        data = cast("dict[str, list[dict[str, Any]]]", yaml.safe_load(text))
        self.by_tool = {tool: tuple(_rule(entry) for entry in entries) for tool, entries in data.items() if tool != "task"}
        self.of_task = tuple(_rule(entry) for entry in data.get("task", ()))
        self._checks, self._task_checks = checks, task_checks
        check_quotes(policy, {f"rule `{rule.id}` of `{name}`": rule.policy for rule in self.all()})

    def all(self) -> list[Rule]:
        """Every rule, in the order of the file."""
        return [rule for rules in self.by_tool.values() for rule in rules] + list(self.of_task)

    def refusal(self, id: str) -> str:
        """What an agent says to a request that breaks this rule: a clause, with `{entity}` for the id of what it is about."""
        return next(rule.refusal for rule in self.all() if rule.id == id)

    def broken(self, rows: Tables, user_id: str, call: CallTool, told: Mapping[str, str] | None = None) -> list[Rule]:
        """The rules that a call of this user's conversation breaks in the initial state; none: it is legal.

        `told`: what the user said that a rule asks for and the call has no argument for; checks find it beside the arguments.
        """
        seen = CallTool(name=call.name, arguments={**(told or {}), **call.arguments})
        return [r for r in self.by_tool[call.name] if not self._checks[r.check](rows, user_id, seen, **r.options)]

    def broken_together(self, calls: Sequence[CallTool]) -> list[Rule]:
        """The rules about a whole conversation that these calls, in this order, break."""
        return [rule for rule in self.of_task if not self._task_checks[rule.check](calls)]


def own_profile(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The profile belongs to the user of the conversation."""
    return call.arguments["user_id"] == user_id


def check_quotes(policy: str, quotes: Mapping[str, str]) -> None:
    """Raise UserError where one of the sentences is not in the policy; `quotes`: what quotes it -> the sentence."""
    known = " ".join(policy.split())
    for what, sentence in quotes.items():
        if " ".join(sentence.split()) not in known:
            raise UserError(
                f"{what} quotes a sentence that is not in the policy of the installed tau2", hint=f"the sentence: {sentence}"
            )


def _rule(entry: Mapping[str, Any]) -> Rule:
    options = {key: value for key, value in entry.items() if key not in ("id", "check", "policy", "refusal")}
    return Rule(id=entry["id"], check=entry["check"], options=options, policy=entry["policy"], refusal=entry.get("refusal", ""))
