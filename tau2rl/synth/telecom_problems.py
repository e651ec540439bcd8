"""What can be wrong in telecom, from `telecom_problems.yaml`, and what of it one task has."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, cast

import yaml

from tau2rl.synth.failure_clusters import ANYTHING, Cell, Focus
from tau2rl.synth.generator import Json
from tau2rl.synth.request import AskedAmount
from tau2rl.synth.rules import check_quotes
from tau2rl.synth.telecom_people import NUM_PEOPLE, TelecomPerson, person

ASKS = 0.35  # share of the tasks that can be solved in which the user also asks something
TO_A_HUMAN: Cell = ("to a human",)  # the cell of the tasks with a problem that is beyond the agent
TRAVELS = 0.2  # share of those about data or MMS whose user is abroad although roaming works
Requestor = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStep:
    """A call of a tool or of one of tau2's functions: `CaseStep(by="user", call="toggle_data", arguments={}, ...)`."""

    by: Requestor
    call: str
    arguments: Mapping[str, Any]  # "{name}" is a value of the task
    words: str = ""  # of a look: what the agent asks the user to do
    say: str = ""  # of a fix: what the agent says before it
    looks: tuple[CaseStep, ...] = ()  # what the agent looks at before it
    allows: Mapping[str, Mapping[str, Sequence[Any]]]  # intent -> argument -> other values that do as well


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemGroup:
    """Things that are looked at together; a task has at most one problem of a group."""

    name: str
    intents: tuple[str, ...]
    own: tuple[str, ...]  # a task of these intents has a problem of at least one such group
    looks: tuple[CaseStep, ...]
    abroad: bool  # whether it is only looked at when the user is abroad


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    name: str
    group: ProblemGroup
    intents: tuple[str, ...]
    breaks: tuple[CaseStep, ...]
    fixes: tuple[CaseStep, ...]  # none: it is beyond the agent
    reboot: bool
    asserts: tuple[CaseStep, ...]
    because: str  # why it goes to a human, as a clause
    forbidden: tuple[CaseStep, ...]
    policy: str

    @property
    def tools(self) -> tuple[str, ...]:
        """What puts it right, by name, in order."""
        return tuple(step.call for step in fixes([self]))


class ProblemBook:
    """Every problem, in the order in which an agent looks for them."""

    def __init__(self, policy: str) -> None:
        """Raises UserError when a problem's sentence is not in `policy`: then the file belongs to another version of it."""
        text = resources.files("tau2rl.synth").joinpath("telecom_problems.yaml").read_text("utf-8")
        data = cast("dict[str, Any]", yaml.safe_load(text))
        self.groups = {name: _group(name, entry) for name, entry in data["groups"].items()}
        order = list(self.groups)
        problems = [_problem(name, entry, self.groups) for name, entry in data["problems"].items()]
        self.problems = tuple(sorted(problems, key=lambda problem: order.index(problem.group.name)))
        self._asserts = data["asserts"]
        check_quotes(policy, {f"problem `{problem.name}` of `telecom`": problem.policy for problem in self.problems})

    def asserts(self, intent: str, *, solved: bool) -> tuple[CaseStep, ...]:
        """What tau2 asks at the end of a task of this intent."""
        return _steps(self._asserts[intent]["solved" if solved else "handed_over"])

    def most(self, intent: str) -> int:
        """The most problems that a task which can be solved has at once."""
        return len({problem.group.name for problem in self._of(intent, beyond=False)})

    def cells(self, numbers: Sequence[int], intents: Sequence[str], personas: Sequence[str]) -> list[Cell]:
        """Each number of problems with each intent that can have so many, and each persona."""
        return [(n, intent, persona) for n in numbers for intent in intents for persona in personas if n <= self.most(intent)]

    def draw(
        self, intent: str, number: int, rng: random.Random, *, beyond: bool, focus: Focus = ANYTHING
    ) -> tuple[Problem, ...] | None:
        """So many problems of different groups, with what `focus` asks for and one that is beyond the agent if asked for.

        None where the draw is none.
        """
        wanted = beyond or bool(focus.problem or focus.tool)
        among = [problem for problem in self._of(intent, beyond=beyond) if serves(problem, focus)]
        if wanted and not among:
            return None
        first = [rng.choice(among)] if wanted else []
        # A phone that sees no SIM card does not say that the card is locked.
        taken = {problem.group.name for problem in first}
        free = sorted({problem.group.name for problem in self._of(intent, beyond=False)} - taken)
        if len(free) + len(first) < number:
            return None
        groups = rng.sample(free, number - len(first))
        chosen = [rng.choice([p for p in self._of(intent, beyond=False) if p.group.name == group]) for group in groups]
        if not any(intent in problem.group.own for problem in (*chosen, *first)):
            return None
        return tuple(problem for problem in self.problems if problem in (*chosen, *first))

    def _of(self, intent: str, *, beyond: bool) -> list[Problem]:
        return [problem for problem in self.problems if intent in problem.intents and (not problem.fixes) == beyond]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one conversation is about: `draw_case` makes it."""

    person: TelecomPerson
    line: Mapping[str, Any]  # of the phone that the user calls about
    intent: str
    problems: tuple[Problem, ...]  # in the order of the book
    values: Mapping[str, Any]  # of the steps
    abroad: bool
    question: AskedAmount | None

    @property
    def beyond(self) -> Problem | None:
        """The problem for which it goes to a human, if it does."""
        return next((problem for problem in self.problems if not problem.fixes), None)

    @property
    def fixes(self) -> tuple[CaseStep, ...]:
        """What puts everything right; none where it goes to a human."""
        return () if self.beyond else fixes(self.problems)

    @property
    def breaks(self) -> tuple[CaseStep, ...]:
        """What makes the phone and the line so."""
        travels = not any(problem.group.abroad for problem in self.problems) and self.abroad
        return (*(_ROAMS if travels else ()), *(step for problem in self.problems for step in problem.breaks))


def serves(problem: Problem, focus: Focus) -> bool:
    """Whether a task with this problem has what `focus` asks for."""
    return focus.problem in ("", problem.name) and (focus.tool == "" or focus.tool in problem.tools)


def draw_case(
    book: ProblemBook,
    plans: Mapping[str, Mapping[str, Any]],
    intent: str,
    number: int,
    rng: random.Random,
    *,
    beyond: bool,
    focus: Focus = ANYTHING,
) -> Case | None:
    """A user with so many problems, or None where the draw came to nothing. `plans`: tau2's, by id.

    Somebody whose problem is beyond the agent also asks for an amount, so that handing over alone does not do.
    """
    who = person(rng.randrange(NUM_PEOPLE))
    line = rng.choice(who.lines)
    problems = book.draw(intent, number, rng, beyond=beyond, focus=focus)
    if problems is None:
        return None
    plan, over = plans[line["plan_id"]], rng.randint(1, 9) / 10
    gb = rng.choice((1.0, 1.5, 2.0))
    values = {
        "customer_id": who.customer_id,
        "line_id": line["line_id"],
        "bill_id": who.overdue_bill_id,
        "limit_gb": plan["data_limit_gb"],
        "used_gb": round(plan["data_limit_gb"] + over, 1),
        "used_up_gb": round(plan["data_limit_gb"] + 2 + over, 1),
        "gb": gb,
        "cost": f"${gb * plan['data_refueling_price_per_gb']:.2f}",
        "price": f"${plan['price_per_month']:.2f}",
        "bad_mode": rng.choice(("2g_only", "3g_only")) if intent == "mobile_data" else "2g_only",  # MMS works with 3G
    }
    asks = beyond or focus.asks or rng.random() < ASKS
    month = rng.choice(sorted(who.bills))
    return Case(
        person=who,
        line=line,
        intent=intent,
        problems=problems,
        values=values,
        abroad=intent != "service" and (any(p.group.abroad for p in problems) or rng.random() < TRAVELS),
        question=AskedAmount(say=f"how much my bill for {month} came to", value=f"{who.bills[month]:.2f}") if asks else None,
    )


def composition(intent: str, problems: Sequence[str]) -> str:
    """What is wrong, for whom, in one line: `mms: bad_vpn, data_mode_off`; in a key the problems stand as in the book."""
    return f"{intent}: {', '.join(problems)}"


def filled(step: CaseStep, values: Mapping[str, Any]) -> Json:
    """The arguments of a step with the values of a task.

    >>> step = CaseStep(by="user", call="f", arguments={"id": "{line_id}", "gb": "{gb}"}, allows={})
    >>> filled(step, {"line_id": "L1", "gb": 1.5})
    {'id': 'L1', 'gb': 1.5}
    """
    return {
        name: values[value[1:-1]] if isinstance(value, str) and value.startswith("{") else value
        for name, value in step.arguments.items()
    }


def fixes(problems: Sequence[Problem]) -> tuple[CaseStep, ...]:
    """What puts all of them right, in order: those that need a restart last, and one restart for all of them."""
    at_once = [step for problem in problems if not problem.reboot for step in problem.fixes]
    later = [step for problem in problems if problem.reboot for step in problem.fixes]
    return (*at_once, *later, *([REBOOT] if later else []))


def _group(name: str, entry: Mapping[str, Any]) -> ProblemGroup:
    return ProblemGroup(
        name=name,
        intents=tuple(entry["intents"]),
        own=tuple(entry.get("own", ())),
        looks=_steps(entry["looks"]),
        abroad=bool(entry.get("abroad")),
    )


def _problem(name: str, entry: Mapping[str, Any], groups: Mapping[str, ProblemGroup]) -> Problem:
    group = groups[entry["group"]]
    return Problem(
        name=name,
        group=group,
        intents=tuple(entry.get("intents", group.intents)),
        breaks=_steps(entry["breaks"]),
        fixes=_steps(entry.get("fixes", ())),
        reboot=bool(entry.get("reboot")),
        asserts=_steps(entry.get("asserts", ())),
        because=entry.get("because", ""),
        forbidden=_steps(entry.get("forbidden", ())),
        policy=entry["policy"],
    )


def _steps(entries: Sequence[Mapping[str, Any]]) -> tuple[CaseStep, ...]:
    return tuple(map(_step, entries))


def _step(entry: Mapping[str, Any]) -> CaseStep:
    return CaseStep(
        by=entry["by"],
        call=entry["call"],
        arguments=entry.get("arguments", {}),
        words=entry.get("words", ""),
        say=entry.get("say", ""),
        looks=_steps(entry.get("looks", ())),
        allows=entry.get("allows", {}),
    )


def user_look(tool: str, words: str) -> CaseStep:
    """Something that a user can look at on their phone."""
    return _step({"by": "user", "call": tool, "words": words})


REBOOT = _step({"by": "user", "call": "reboot_device", "say": "Please restart your phone now ({tool})."})
_ROAMS = _steps(
    (
        {"by": "user", "call": "set_user_location", "arguments": {"abroad": True}},
        {"by": "user", "call": "turn_roaming_on"},
        {"by": "assistant", "call": "enable_roaming", "arguments": {"customer_id": "{customer_id}", "line_id": "{line_id}"}},
    )
)
