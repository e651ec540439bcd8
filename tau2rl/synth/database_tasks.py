"""Tasks of a domain whose users ask for changes of the database (airline, retail): writes x reads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tau2rl.config import SynthConfig
from tau2rl.env.task_replay import Replayer
from tau2rl.synth.card import counts_in_words, sorted_counts
from tau2rl.synth.compose import AFFORDANCES, BURDENS, REFUSAL, Composed, Composer
from tau2rl.synth.contamination import WORDS, ContaminationGuard
from tau2rl.synth.failure_clusters import Cell, Failures, calls_in_words
from tau2rl.synth.generator import Draft, Json, Made, Rejected
from tau2rl.synth.llm_writer import SHARED, InWords, WrittenTasks, writer_lines
from tau2rl.synth.proof import SOLVED, Proof, Prover
from tau2rl.synth.request import call_of
from tau2rl.synth.rules import RuleBook
from tau2rl.synth.texts import Text, demonstrate, leaked_ids, missing_facts, user_text

TELLINGS = 20  # texts for one further way of a task


@dataclass(frozen=True, slots=True, kw_only=True)
class Worded(Draft):
    """A composition in its words, as a task."""

    composed: Composed
    text: Text


class DatabaseTasks(WrittenTasks[Worded]):
    """Composed tasks of airline or retail."""

    declined = REFUSAL
    licence = (
        "The rows of the database and the policy are tau2-bench's (MIT). The texts are made by templates of tau2rl (Apache-2.0)."
    )

    def __init__(self, config: SynthConfig, failures: Failures | None = None) -> None:
        """`failures`: what the tasks are made for, where that is failures of runs."""
        self._replayer = Replayer(config.domain)
        self._domain = AFFORDANCES[config.domain](self._replayer.rows())
        self._book = RuleBook(config.domain, self._replayer.policy, self._domain.checks, self._domain.task_checks)
        self._composer = Composer(self._domain, self._book)
        self._prover = Prover(self._replayer, self._domain, self._book)
        self._guard = ContaminationGuard(domain=self._domain, tests=self._replayer.tasks("test"), writes=self._replayer.writes)
        self._users = [id for id in self._domain.users() if id not in self._guard.users]
        super().__init__(config, failures, table=self._domain.table, kinds=sorted(self._replayer.writes))

    def identity(self) -> Json:
        """tau2's distribution and version, hashes of its data."""
        return self._replayer.identity()

    def grid(self) -> list[Cell]:
        """Each number of writes with each bin of reads."""
        return [(writes, burden) for writes in self._config.writes for burden in self._config.burdens]

    def draw(self, id: str, cell: Cell, rng: random.Random, free: Callable[[str], bool]) -> Worded | None:
        """A composition in its words; None where the draw came to nothing."""
        user = rng.choice(self._users)
        writes, burden = cell[:2]
        if not free(user) or self._domain.room(user) < writes:
            return None
        made = self._composer.compose(user, (writes, burden), rng, self.focus(cell))
        if made is None:
            return None
        text = user_text(made, self._domain.table, rng, self._config.twists)
        calls = calls_in_words([asdict(request.call) for request in made.requests])
        task = self._as_task(id, made, text, rng)
        return Worded(user_id=user, same=calls, task=task, composed=made, text=text)

    def prove(self, draft: Worded) -> Json:
        """Everything that `Prover` tries. Raises Rejected."""
        if fault := self._faults(draft.composed, draft.text):
            raise Rejected(fault)
        if self._guard.overlap(draft.task):
            raise Rejected(SHARED)
        return asdict(self._prover.prove(draft.composed, draft.task))

    def _faults(self, made: Composed, text: Text) -> str:
        """What is wrong with a text, or ""."""
        if missing_facts(made, text):
            return "a fact is missing from the text"
        ids = frozenset({made.user_id, *self._domain.rows["users"][made.user_id][self._domain.table]})
        return "the text gives away an id" if leaked_ids(made, text, ids) else ""

    def finish(self, draft: Worded, proof: Json, split: str) -> list[Made]:
        """The task as its first text has it, and in further ways, where it is asked for them and can be told so."""
        id, made = draft.task["id"], draft.composed

        def way(text: Text, task: Json) -> InWords:
            row = Proof(**proof).row(task["id"], made, text.behaviour)
            lines = writer_lines(made, text, table=self._domain.table) if self._writer else ()
            anew = text is not draft.text
            return InWords(user_id=made.user_id, task=task, row=row, split=split, text=text, lines=tuple(lines), told_anew=anew)

        ways, known = [way(draft.text, draft.task)], [draft.text.behaviour]
        for place in range(TELLINGS * (self._config.behaviours - 1)):
            if len(ways) == self._config.behaviours:
                break
            rng = random.Random(f"{id}/{place}")
            other = user_text(made, self._domain.table, rng, self._config.twists)
            if other.behaviour in known or self._faults(made, other):
                continue
            again = self._as_task(f"{id}-{len(ways)}", made, other, rng)
            if not self._guard.overlap(again):
                ways.append(way(other, again))
                known.append(other.behaviour)
        return list[Made](ways)

    def overlaps(self, made: Made) -> object:
        """What a task shares with the test tasks."""
        return self._guard.overlap(made.task)

    def _as_task(self, id: str, made: Composed, text: Text, rng: random.Random) -> Json:
        """tau2's Task as JSON values, with a `demonstration` (`env/task_files.py`)."""
        calls = [*map(call_of, made.looked_up), *made.writes]
        named = [(f"{id}_{i}", call) for i, call in enumerate(calls)]
        writes, burden = made.cell
        broken = [rule for rule in self._book.all() if any(rule.id == request.breaks for request in made.requests)]
        purpose = f"{writes} writes, burden {burden}" if writes else f"must be refused: {broken[0].id}"
        return {
            "id": id,
            "description": {"purpose": purpose, "relevant_policies": broken[0].policy if broken else None, "notes": None},
            "user_scenario": text.scenario(self._config.domain),
            "ticket": None,
            "initial_state": None,
            "evaluation_criteria": {
                "actions": [{"action_id": name, **asdict(call)} for name, call in named],
                "communicate_info": [made.question.value] if made.question else [],
                "nl_assertions": None,
                "reward_basis": ["DB", "COMMUNICATE"],
            },
            "demonstration": demonstrate(made, text, named, domain=self._domain, book=self._book, rng=rng),
        }

    def counts(self, made: Sequence[Made]) -> Json:
        """Tasks by cell, tools, broken rules; what was tried; what is shared with the test tasks."""
        rows = [m.row for m in made]
        requests = [request for row in rows for request in row["requests"]]
        perturbed = [write for row in rows for write in row["perturbed"]]
        cells = Counter((row["writes"], row["burden_bin"]) for row in rows)
        guard = self._guard
        return {
            "told_anew": sum(isinstance(m, InWords) and m.told_anew for m in made),
            "grid_head": ["writes", *(f"{name} reads" for name in BURDENS)],
            "grid": {
                str(writes): {name: cells[writes, name] for name in BURDENS} for writes in sorted({row["writes"] for row in rows})
            },
            "tools": sorted_counts(Counter(request["call"]["name"] for request in requests if not request["breaks"])),
            "refused_rules": sorted_counts(Counter(request["breaks"] for request in requests if request["breaks"])),
            "proofs": {
                "reference_path_rewarded_1": sum(row["rewards"]["gold"] >= SOLVED for row in rows),
                "solved_by_do_nothing": sum(row["rewards"]["do_nothing"] >= SOLVED for row in rows),
                "solved_by_always_transfer": sum(row["rewards"]["always_transfer"] >= SOLVED for row in rows),
                "writes": len(perturbed),
                "altered_arguments": sum(len(write["altered"]) for write in perturbed),
                "doubled": sorted_counts(Counter(write["doubled"] for write in perturbed)),
                "orders_tried": sum(sum(row["orders"].values()) for row in rows),
            },
            "contamination": {
                "test_tasks": len(guard.tests),
                "customers_of_test_tasks": len(guard.users),
                "table": guard.domain.table,
                "entities_of_test_tasks": len(guard.entities),
                "run_of_words": WORDS,
                "shared": guard.domain.shared,
                "tasks_that_share_something": sum(bool(guard.overlap(m.task)) for m in made),
            },
        }

    def in_words(self, facts: Mapping[str, Any]) -> str:
        """What the axes of the grid are, what was tried, and what was compared with the test tasks."""
        proofs, guard = facts["proofs"], facts["contamination"]
        return f"""Writes are calls that change the database; reads are the least calls after which every argument of a write,
and the answer to the customer's question, is known (authentication is not counted). Tasks without writes ask for what the policy
forbids.

Tools: {counts_in_words(facts["tools"])}. Rules to refuse by: {counts_in_words(facts["refused_rules"])}.
{facts["asks_something"]} tasks ask for an amount that must be said.
{_ways(facts)}
## Proofs

tau2's grader gave the reference path 1 on {proofs["reference_path_rewarded_1"]} of {facts["tasks"]} tasks. Doing nothing solves
{proofs["solved_by_do_nothing"]}, always transferring {proofs["solved_by_always_transfer"]}.
{proofs["writes"]} writes were left out, doubled ({counts_in_words(proofs["doubled"])})
and altered in {proofs["altered_arguments"]} arguments; {proofs["orders_tried"]} orders were tried.

## Overlap with the test tasks

{guard["tasks_that_share_something"]} tasks share a customer, one of the {guard["table"]}, a gold call with its arguments, or
a run of {guard["run_of_words"]} words with one of the {guard["test_tasks"]} test tasks, whose
{guard["customers_of_test_tasks"]} customers and {guard["entities_of_test_tasks"]} {guard["table"]} are left out.
{guard["shared"]}
"""


def _ways(facts: Mapping[str, Any]) -> str:
    told = facts["told_anew"]
    return f"{told} tasks have the calls of another one, whose user behaves in another way: `ID-1`, ...\n" if told else ""
