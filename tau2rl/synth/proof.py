"""The proof of a task: what was tried on fresh databases, kept beside the task, and why a task that fails it is thrown away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from tau2rl.env.audit import POLICIES
from tau2rl.env.task_replay import Replayer, ReplayOutcome
from tau2rl.env.tasks import closing_words
from tau2rl.synth.compose import Composed
from tau2rl.synth.generator import Rejected
from tau2rl.synth.request import MARGIN, Affordances, call_of
from tau2rl.synth.rules import RuleBook
from tau2rl.types import CallTool

SOLVED = 1.0 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was found, JSON-ready by `row`."""

    gold_hash: str
    writes: Sequence[dict[str, Any]]  # a write: its call, the hash without it, what doubling did, every altered argument
    orders: dict[str, int]  # how many orders of the writes: same end, forbidden by a rule of the conversation
    constant_policies: dict[str, float]  # policy -> reward
    gold_reward: float

    def row(self, task_id: str, made: Composed, behaviour: dict[str, str]) -> dict[str, Any]:
        """The task's line in `proofs.jsonl`."""
        writes, burden = made.cell
        requests = [
            {
                "call": asdict(r.call),
                "facts": list(r.facts),
                "breaks": r.breaks,
                "choices": [{**asdict(c), "margin": c.margin if c.margin != float("inf") else None} for c in r.choices],
            }
            for r in made.requests
        ]
        return {
            "task_id": task_id,
            "user_id": made.user_id,
            "writes": writes,
            "burden": len(made.reads),
            "burden_bin": burden,
            "reads": [asdict(call_of(read)) for read in made.reads],
            "behaviour": behaviour,
            "requests": requests,
            "withdrawn": asdict(made.withdrawn.request.call) if made.withdrawn and behaviour["twist"] == "changes_mind" else None,
            "question": {"say": made.question.say, "value": made.question.value} if made.question else None,
            "replayed_twice": True,
            "gold_hash": self.gold_hash,
            "perturbed": list(self.writes),
            "orders": self.orders,
            "rewards": {"gold": self.gold_reward, **self.constant_policies},
        }


class Prover:
    """Proves composed tasks of a domain."""

    def __init__(self, replayer: Replayer, domain: Affordances, book: RuleBook) -> None:
        self._replayer, self._domain, self._book = replayer, domain, book

    def prove(self, made: Composed, task: dict[str, Any]) -> Proof:
        """Try everything. Raises Rejected."""
        reads = [call_of(read) for read in made.looked_up]
        gold = self._replayer.run([*reads, *made.writes])
        if any(gold.errors):
            raise Rejected("a reference call is refused")
        if self._replayer.run([*reads, *made.writes]) != gold or self._replayer.run(made.writes).hash != gold.hash:
            raise Rejected("two replays end differently")
        _check_choices(made)
        writes = tuple(self._perturbed(made, index, gold.hash) for index in range(len(made.writes)))
        orders = self._orders(made, gold)
        gold_reward, floors = self._rewards(made, task, reads)
        return Proof(gold_hash=gold.hash, writes=writes, orders=orders, constant_policies=floors, gold_reward=gold_reward)

    def _perturbed(self, made: Composed, index: int, gold: str) -> dict[str, Any]:
        """One write left out, doubled, and with each of its arguments altered."""
        before, call, after = made.writes[:index], made.writes[index], made.writes[index + 1 :]
        without = self._replayer.run([*before, *after]).hash
        if without == gold:
            raise Rejected("leaving out a write changes nothing")
        twice = self._replayer.run([*before, call, call, *after])
        doubled = "refused" if any(twice.errors) else "changed" if twice.hash != gold else "without effect"
        altered: list[dict[str, Any]] = []
        for argument, other in alterations(self._domain, made.user_id, call):
            end = self._replayer.run([*before, other, *after])
            if end.hash == gold:
                raise Rejected(f"altering `{argument}` of `{call.name}` changes nothing")
            value, refused = other.arguments[argument], any(end.errors)
            altered.append({"argument": argument, "value": value, "hash": end.hash, "refused": refused})
        if self._replayer.run([*before, self._turned(call), *after]).hash != gold:
            raise Rejected("the order of a call's items matters")
        return {"call": asdict(call), "left_out": without, "doubled": doubled, "altered": altered}

    def _turned(self, call: CallTool) -> CallTool:
        """The same call with its items named in the other order, where that has no meaning."""
        lists = {key: value[::-1] for key, value in call.arguments.items() if key in self._domain.unordered}
        return CallTool(name=call.name, arguments={**call.arguments, **lists})

    def _orders(self, made: Composed, gold: ReplayOutcome) -> dict[str, int]:
        """Every other order ends the same, unless the policy forbids it and the user's words say so."""
        found = {"same": 0, "forbidden": 0}
        for order in permutations(made.writes):
            end = self._replayer.run(order)
            if self._book.broken_together(order):
                found["forbidden"] += 1
            elif any(end.errors) or end.hash != gold.hash:
                raise Rejected("another order of the writes ends differently")
            else:
                found["same"] += 1
        if found["forbidden"] and not made.pinned:
            raise Rejected("the order of the writes is not pinned by the text")
        return found

    def _rewards(self, made: Composed, task: dict[str, Any], reads: Sequence[CallTool]) -> tuple[float, dict[str, float]]:
        """tau2's reward of the reference path and of policies that always do the same."""
        told = [made.question.value] if made.question else []
        gold = self._replayer.reward(task, [*reads, *made.writes], [closing_words(told)])
        if gold < SOLVED:
            raise Rejected("tau2 does not give the reference path a reward of 1")
        floors: dict[str, float] = {}
        for name, actions in POLICIES.items():
            calls = [CallTool(name=action.name, arguments=dict(action.arguments)) for action in actions]
            floors[name] = self._replayer.reward(task, calls)
            if floors[name] >= SOLVED:
                raise Rejected(f"the policy {name} solves it")
        return gold, floors


def _check_choices(made: Composed) -> None:
    """What each selector chose is the only optimum of its candidates, by `MARGIN`."""
    for choice in (choice for request in made.requests for choice in request.choices):
        sign = -1 if choice.by.startswith("highest") else 1
        best = sign * choice.candidates[choice.chosen]
        if any(sign * value < best + MARGIN for id, value in choice.candidates.items() if id != choice.chosen):
            raise Rejected("a selector's optimum is not unique by its margin")


def alterations(domain: Affordances, user_id: str, call: CallTool) -> Iterator[tuple[str, CallTool]]:
    """(argument, the call with another value of it), once or twice for every argument of a call that writes."""
    for argument in call.arguments:
        for other in domain.other_values(user_id, call, argument):
            yield argument, CallTool(name=call.name, arguments={**call.arguments, argument: other})
