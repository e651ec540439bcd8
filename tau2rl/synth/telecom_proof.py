"""The proof of a telecom task: what was tried on its initial state, by whom, and what tau2's assertions said of it.

tau2 grades telecom by assertions about the phone and the line and, where a task goes to a human, by the call that hands it over.
So each action is shown to be needed by them; where they allow another end, that end has another hash, and the manual allows it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from tau2rl.env.audit import POLICIES
from tau2rl.env.task_replay import ReplayEnded, TaskReplayer
from tau2rl.env.tasks import closing_words
from tau2rl.synth.generator import Json, Rejected
from tau2rl.synth.proof import SOLVED
from tau2rl.synth.telecom_problems import Case, CaseStep, filled

ORDERS = 24  # of the problems, at most so many are tried
MODES = ("4g_5g_preferred", "4g_only", "3g_only", "2g_only")


def as_action(step: CaseStep, values: Mapping[str, Any]) -> Json:
    """A step as tau2's reference action, without an id."""
    return {"requestor": step.by, "name": step.call, "arguments": filled(step, values)}


def prove_case(case: Case, task: Json, told: Sequence[str]) -> Json:
    """Try everything; what was found, JSON-ready. `told`: what the agent must say. Raises Rejected."""
    replayer = TaskReplayer("telecom", task)
    actions: list[Json] = task["evaluation_criteria"]["actions"]
    gold = replayer.run(actions)
    if any(gold.errors) or not gold.holds:
        raise Rejected("the reference path is refused, or does not end as it should")
    if replayer.run(actions) != gold or TaskReplayer("telecom", task).run(actions) != gold:
        raise Rejected("two replays end differently")
    tried = _Tried(case, replayer, actions, gold)
    return {
        "gold_hash": gold.hash,
        "perturbed": [] if case.beyond else list(tried.perturbed()),
        "orders": {"same": 0 if case.beyond else tried.orders(random.Random(task["id"]))},
        "forbidden": tried.forbidden(),
        "rewards": tried.rewards(told),
    }


class _Tried:
    """What is tried on one task."""

    def __init__(self, case: Case, replayer: TaskReplayer, actions: Sequence[Json], gold: ReplayEnded) -> None:
        self._case, self._replayer, self._actions, self._gold = case, replayer, list(actions), gold

    def perturbed(self) -> Iterator[Json]:
        """Every action left out, doubled, and with each of its arguments altered. Raises Rejected."""
        for place, action in enumerate(self._actions):
            before, after = self._actions[:place], self._actions[place + 1 :]
            without = self._replayer.run([*before, *after])
            if without.holds:
                raise Rejected("leaving out an action is enough, too")
            twice = self._replayer.run([*before, action, action, *after])
            yield {
                "call": {key: action[key] for key in ("requestor", "name", "arguments")},
                "left_out": without.hash,
                "doubled": self._kind(twice, len(before) + 1),
                "altered": list(self._altered(before, action, after)),
            }

    def _kind(self, end: ReplayEnded, place: int) -> str:
        """What an action came to that was taken a second time, at `place`."""
        if not end.holds:
            return "fails"
        return "refused" if end.errors[place] else "another end" if end.hash != self._gold.hash else "without effect"

    def _altered(self, before: Sequence[Json], action: Json, after: Sequence[Json]) -> Iterator[Json]:
        allowed = next((step.allows for step in self._case.fixes if step.call == action["name"] and step.allows), {})
        for argument in action["arguments"]:
            for value in self._other_values(argument, action["arguments"][argument]):
                other = {**action, "arguments": {**action["arguments"], argument: value}}
                end = self._replayer.run([*before, other, *after])
                legal = value in allowed.get(self._case.intent, {}).get(argument, ())
                if end.hash == self._gold.hash or (end.holds and not legal):
                    raise Rejected(f"altering `{argument}` of `{action['name']}` is as good")
                refused = bool(end.errors[len(before)])
                yield {"argument": argument, "value": value, "hash": end.hash, "holds": end.holds, "refused": refused}

    def _other_values(self, argument: str, value: Any) -> list[Any]:
        """Other lines, bills and users, other amounts, and everything else that the phone offers."""
        who = self._case.person
        if argument == "gb_amount":
            return [each for each in (0.5, 1.0, 1.5, 2.0) if each != value]
        others = {
            "customer_id": ["C1001", "C9999"],
            "line_id": [line["line_id"] for line in who.lines],
            "bill_id": [who.paid_bill_id, "B99999999"],
            "mode": MODES,
            "app_name": ["browser"],
            "permission": ["sms", "storage", "phone", "network"],
        }
        return [each for each in others[argument] if each != value]

    def orders(self, rng: random.Random) -> int:
        """How many orders of the problems were tried, which all end the same. Raises Rejected."""
        units = [[as_action(step, self._case.values) for step in problem.fixes] for problem in self._case.problems]
        last = [unit for unit, problem in zip(units, self._case.problems, strict=True) if problem.reboot]
        others = [unit for unit, problem in zip(units, self._case.problems, strict=True) if not problem.reboot]
        units = [*others, *([[*(action for unit in last for action in unit), self._actions[-1]]] if last else [])]
        orders = list(permutations(units)) if len(units) <= 4 else [rng.sample(units, len(units)) for _ in range(ORDERS)]
        for order in orders:
            end = self._replayer.run([action for unit in order for action in unit])
            if not end.holds or any(end.errors) or end.hash != self._gold.hash:
                raise Rejected("another order of the problems ends differently")
        return len(orders)

    def forbidden(self) -> list[Json]:
        """What the policy forbids, done beside everything else that can be done: it must not end as it should."""
        problem = self._case.beyond
        if problem is None or not problem.forbidden:
            return []
        calls = [as_action(step, self._case.values) for step in problem.forbidden]
        end = self._replayer.run([*calls, *self._actions])
        if end.holds or any(end.errors):
            raise Rejected("what the policy forbids goes unseen")
        return [{**call, "hash": end.hash} for call in calls]

    def rewards(self, told: Sequence[str]) -> dict[str, float]:
        """tau2's reward of the reference path and of policies that always do the same. Raises Rejected."""
        rewards = {"gold": self._replayer.reward(self._actions, [closing_words(told)])}
        if rewards["gold"] < SOLVED:
            raise Rejected("tau2 does not give the reference path a reward of 1")
        if self._case.beyond:
            rewards["without_the_hand_over"] = self._replayer.reward([], [closing_words(told)])
            if rewards["without_the_hand_over"] >= SOLVED:
                raise Rejected("leaving out an action is enough, too")
        for name, actions in POLICIES.items():
            taken = [{"requestor": action.requestor, "name": action.name, "arguments": action.arguments} for action in actions]
            rewards[name] = self._replayer.reward(taken)
            if rewards[name] >= SOLVED:
                raise Rejected(f"the policy {name} solves it")
        return rewards
