"""Telecom's tasks: a user whose phone or line has several things wrong with it at once; problems x intents x personas."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tau2rl.config import SynthConfig
from tau2rl.enums import TRANSFER_TOOL
from tau2rl.env.task_replay import Replayer
from tau2rl.errors import UserError
from tau2rl.synth.card import counts_in_words, sorted_counts
from tau2rl.synth.contamination import WORDS, TelecomGuard
from tau2rl.synth.failure_clusters import Cell, Failures
from tau2rl.synth.generator import Draft, Json, Made, Rejected
from tau2rl.synth.llm_writer import SHARED, InWords, WrittenTasks
from tau2rl.synth.proof import SOLVED
from tau2rl.synth.request import count_words
from tau2rl.synth.telecom_people import NUM_PEOPLE
from tau2rl.synth.telecom_problems import TO_A_HUMAN, Case, CaseStep, ProblemBook, composition, draw_case, filled
from tau2rl.synth.telecom_proof import as_action, prove_case
from tau2rl.synth.telecom_texts import KINDS, TELECOM_TWISTS, case_facts, case_lines, case_text, demonstrate_case, purpose
from tau2rl.synth.texts import Text

TELLINGS = 20  # texts for one further way of a task
MOST_BEYOND = 4  # problems of a task that goes to a human


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Draft):
    """A case in its words, as a task."""

    case: Case
    text: Text


class TelecomTasks(WrittenTasks[Told]):
    """Composed tasks of telecom."""

    declined = TO_A_HUMAN
    apart = "an intent with its problems"
    licence = "The plans, the phone and the policy are tau2-bench's (MIT). Customers and texts are made by tau2rl (Apache-2.0)."

    def __init__(self, config: SynthConfig, failures: Failures | None = None) -> None:
        """`failures`: what the tasks are made for, where that is failures of runs.

        Raises UserError where it is asked for users whom telecom does not have.
        """
        if not set(config.twists) & set(TELECOM_TWISTS):
            raise UserError(
                "no user of a telecom task changes their mind",
                hint="tau2 grades telecom by what must hold at the end, so that a deed which was taken back would go unseen; "
                f"its `twists` are {', '.join(TELECOM_TWISTS)}",
            )
        super().__init__(config, failures, table="phone", kinds=KINDS)
        self._replayer = Replayer(config.domain)
        rows = self._replayer.rows()
        self._plans = {plan["plan_id"]: plan for plan in rows["plans"]}
        self._book = ProblemBook(self._replayer.policy)
        self._guard = TelecomGuard(rows=rows, tests=self._replayer.tasks("test"))

    def identity(self) -> Json:
        """tau2's distribution and version, hashes of its data."""
        return self._replayer.identity()

    def grid(self) -> list[Cell]:
        """Each number of problems with each intent that can have so many, and each persona."""
        return self._book.cells(self._config.problems, self._config.intents, self._config.personas)

    def draw(self, id: str, cell: Cell, rng: random.Random, free: Callable[[str], bool]) -> Told | None:
        """A case in its words; None where the draw came to nothing."""
        beyond = self.is_declined(cell)
        number, intent, persona = cell[:3] if not beyond else self._any(rng)
        case = draw_case(self._book, self._plans, intent, number, rng, beyond=beyond, focus=self.focus(cell))
        if case is None or not free(case.person.customer_id):
            return None
        text = case_text(case, persona, rng, self._config.twists)
        task = self._as_task(f"[{intent}_issue]{id}", case, text, rng)
        same = composition(intent, [problem.name for problem in case.problems])
        return Told(user_id=case.person.customer_id, same=same, task=task, case=case, text=text)

    def _any(self, rng: random.Random) -> tuple[int, str, str]:
        """A place for a task that goes to a human, spread as the others are."""
        numbers = [number for number in self._config.problems if number <= MOST_BEYOND] or [1]
        return rng.choice(numbers), rng.choice(self._config.intents), rng.choice(self._config.personas)

    def split_key(self, draft: Told) -> str:
        """The intent with its problems: it is what is to be found out and done, while people are made up."""
        return draft.same

    def prove(self, draft: Told) -> Json:
        """Everything that `telecom_proof.prove` tries. Raises Rejected."""
        case = draft.case
        if any(fact not in draft.text.spoken for fact in case_facts(case, draft.text)):
            raise Rejected("a fact is missing from the text")
        shared = self._guard.overlap(draft.task, case.intent, [problem.name for problem in case.problems])
        if shared.composition:
            raise Rejected("a test task has the same problems")
        if shared:
            raise Rejected(SHARED)
        return prove_case(case, draft.task, [case.question.value] if case.question else [])

    def finish(self, draft: Told, proof: Json, split: str) -> list[Made]:
        """The task as its first text has it, and in further ways, where it is asked for them and can be told so."""
        id, persona = draft.task["id"], draft.text.behaviour["persona"]
        ways, known = [self._way(draft, draft.text, draft.task, proof, split)], [draft.text.behaviour]
        for place in range(TELLINGS * (self._config.behaviours - 1)):
            if len(ways) == self._config.behaviours:
                break
            rng = random.Random(f"{id}/{place}")
            text = replace(case_text(draft.case, persona, rng, self._config.twists), persona=draft.text.persona)
            if text.behaviour not in known:
                again = self._as_task(f"{id}-{len(ways)}", draft.case, text, rng)
                ways.append(self._way(draft, text, again, proof, split))
                known.append(text.behaviour)
        return list[Made](ways)

    def overlaps(self, made: Made) -> object:
        """What a task shares with the test tasks."""
        return self._guard.overlap(made.task, made.row["intent"], made.row["problems"])

    def _way(self, draft: Told, text: Text, task: Json, proof: Json, split: str) -> InWords:
        case, behaviour = draft.case, text.behaviour
        place = f"{count_words(len(case.problems), 'problem')}, {case.intent}, {behaviour['persona']}"
        row = {
            "task_id": task["id"],
            "user_id": draft.user_id,
            "cell": place if case.beyond is None else f"to a human, {case.intent}",
            "intent": case.intent,
            "problems": [problem.name for problem in case.problems],
            "to_a_human": case.beyond.name if case.beyond else None,
            "abroad": case.abroad,
            "behaviour": behaviour,
            "question": {"say": case.question.say, "value": case.question.value} if case.question else None,
            "replayed_twice": True,
            **proof,
        }
        lines, anew = case_lines(case, text) if self._writer else (), text is not draft.text
        return InWords(user_id=draft.user_id, task=task, row=row, split=split, text=text, lines=lines, told_anew=anew)

    def _as_task(self, id: str, case: Case, text: Text, rng: random.Random) -> Json:
        """tau2's Task as JSON values, with a `demonstration` (`env/task_files.py`)."""
        name, phone = case.person.name, case.line["phone_number"]
        who = {"env_type": "user", "func_name": "set_user_info", "arguments": {"name": name, "phone_number": phone}}
        actions = [{"action_id": f"{id}_{i}", **as_action(step, case.values)} for i, step in enumerate(case.fixes)]
        if case.beyond:
            because = case.beyond.because.replace("your ", "the customer's ")
            summary = {"summary": f"This cannot be solved here: {because}."}
            hand_over = {"action_id": f"{id}_0", "requestor": "assistant", "name": TRANSFER_TOOL, "arguments": summary}
            actions = [{**hand_over, "compare_args": []}]
        asserts = [*self._book.asserts(case.intent, solved=not case.beyond), *(s for p in case.problems for s in p.asserts)]
        told = [case.question.value] if case.question else []
        basis = ["ENV_ASSERTION", *(["ACTION"] if case.beyond else []), *(["COMMUNICATE"] if told else [])]
        return {
            "id": id,
            "description": {
                "purpose": purpose(case),
                "relevant_policies": case.beyond.policy if case.beyond else None,
                "notes": None,
            },
            "user_scenario": text.scenario("telecom"),
            "ticket": None,
            "initial_state": {
                "initialization_data": {"agent_data": case.person.tables, "user_data": None},
                "initialization_actions": [who, *(self._function(step, case) for step in case.breaks)],
                "message_history": None,
            },
            "evaluation_criteria": {
                "actions": actions,
                "env_assertions": [self._function(step, case) for step in asserts],
                "communicate_info": told,
                "nl_assertions": None,
                "reward_basis": basis,
            },
            "demonstration": demonstrate_case(case, text, self._book, actions, rng),
        }

    def _function(self, step: CaseStep, case: Case) -> Json:
        """A call of one of tau2's functions, as a task has it."""
        return {"env_type": step.by, "func_name": step.call, "arguments": filled(step, case.values)}

    def counts(self, made: Sequence[Made]) -> Json:
        """Tasks by cell, problems, what they go to a human for; what was tried; what is shared with the test tasks."""
        rows = [m.row for m in made]
        perturbed = [action for row in rows for action in row["perturbed"]]
        altered = [each for action in perturbed for each in action["altered"]]
        cells = Counter(
            (row["intent"], row["behaviour"]["persona"], len(row["problems"])) for row in rows if not row["to_a_human"]
        )
        beyond = Counter((row["intent"], len(row["problems"])) for row in rows if row["to_a_human"])
        numbers = sorted({len(row["problems"]) for row in rows})
        grid = {
            f"{i}, {p}": {str(n): cells[i, p, n] for n in numbers} for i in self._config.intents for p in self._config.personas
        }
        grid |= {f"{i}, to a human": {str(n): beyond[i, n] for n in numbers} for i in self._config.intents}
        compositions = {(row["intent"], *row["problems"]) for row in rows}
        return {
            "told_anew": sum(isinstance(m, InWords) and m.told_anew for m in made),
            "grid_head": ["problems", *map(str, numbers)],
            "grid": grid,
            "problems": sorted_counts(Counter(name for row in rows for name in row["problems"])),
            "to_a_human": sorted_counts(Counter(row["to_a_human"] for row in rows if row["to_a_human"])),
            "compositions": len(compositions),
            "people": NUM_PEOPLE,
            "user_actions": sum(action["call"]["requestor"] == "user" for action in perturbed),
            "proofs": {
                "reference_path_rewarded_1": sum(row["rewards"]["gold"] >= SOLVED for row in rows),
                "solved_by_do_nothing": sum(row["rewards"]["do_nothing"] >= SOLVED for row in rows),
                "solved_by_always_transfer": sum(row["rewards"]["always_transfer"] >= SOLVED for row in rows),
                "actions": len(perturbed),
                "altered_arguments": len(altered),
                "altered_and_legal": sum(each["holds"] for each in altered),
                "doubled": sorted_counts(Counter(action["doubled"] for action in perturbed)),
                "orders_tried": sum(row["orders"]["same"] for row in rows),
                "forbidden": sum(len(row["forbidden"]) for row in rows),
            },
            "contamination": {
                "test_tasks": len(self._guard.tests),
                "customers_of_tau2": len(self._guard.people),
                "compositions_of_test_tasks": len(self._guard.compositions),
                "run_of_words": WORDS,
                "shared": "The plans are the same ones, and so is what can be wrong with a phone, one thing at a time.",
                "tasks_that_share_something": sum(bool(self.overlaps(m)) for m in made),
            },
        }

    def in_words(self, facts: Mapping[str, Any]) -> str:
        """What the axes of the grid are, what was tried, and what was compared with the test tasks."""
        proofs, guard = facts["proofs"], facts["contamination"]
        return f"""Problems are things that are wrong at once with a phone or its line; what the customer wants (service, mobile
data, MMS) works only when all of them are put right. In {facts["compositions"]} compositions:
{counts_in_words(facts["problems"])}.
To a human go: {counts_in_words(facts["to_a_human"])}. {facts["asks_something"]} tasks ask for an amount that must be said.
The customers are made up: each task brings the rows of one of {facts["people"]} people, in place of tau2's customers.

## Proofs

tau2's grader gave the reference path 1 on {proofs["reference_path_rewarded_1"]} of {facts["tasks"]} tasks. Doing nothing solves
{proofs["solved_by_do_nothing"]}, always transferring {proofs["solved_by_always_transfer"]}.
{proofs["actions"]} actions, {facts["user_actions"]} of them the user's, were left out, doubled
({counts_in_words(proofs["doubled"])})
and altered in {proofs["altered_arguments"]} values, of which {proofs["altered_and_legal"]} do as well by the manual; all end at
another hash. {proofs["orders_tried"]} orders of the problems were tried, and {proofs["forbidden"]} calls that the policy forbids.

## Overlap with the test tasks

{guard["tasks_that_share_something"]} tasks share one of the {guard["customers_of_tau2"]} customers of tau2's database, all their
problems, or a run of {guard["run_of_words"]} words with one of the {guard["test_tasks"]} test tasks. The customers, and the
{guard["compositions_of_test_tasks"]} compositions of the test tasks, are left out. {guard["shared"]}
"""
