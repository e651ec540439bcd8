"""`tau2rl synth`: from a database to a folder of proved tasks. Everything is drawn from the seed, so the same command gives the same bytes."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

from tau2rl.config import SynthConfig
from tau2rl.env.task_replay import Replayer
from tau2rl.errors import UserError
from tau2rl.synth.card import Made, write_folder
from tau2rl.synth.compose import BURDENS, REFUSAL, Composed, Composer
from tau2rl.synth.guard import Guard
from tau2rl.synth.proof import Proof, Prover, Rejected
from tau2rl.synth.request import call_of
from tau2rl.synth.retail import Retail
from tau2rl.synth.retail_checks import CHECKS, TASK_CHECKS
from tau2rl.synth.rules import RuleBook
from tau2rl.synth.texts import Text, leaked, missing, write

SHARES = {"test": 0.2, "train-select": 0.1}  # of the customers; the others are `train-learn`
TRIES = 400  # compositions for one task
GIVE_UP = 5  # tasks in a row that a cell could not give: its share goes to the others


class Maker:
    """Makes the tasks of retail that a config asks for."""

    def __init__(self, config: SynthConfig, replayer: Replayer) -> None:
        self.config, self.replayer = config, replayer
        self.rejected: Counter[str] = Counter()
        self._rows = self.replayer.rows()
        self._book = RuleBook("retail", self.replayer.policy, CHECKS, TASK_CHECKS)
        self._retail = Retail(self._rows)
        self._composer = Composer(self._retail, self._book)
        self._prover = Prover(self.replayer, self._rows, self._book)
        self.guard = Guard(rows=self._rows, tests=self.replayer.test_tasks(), writes=self.replayer.writes)
        self._users = [id for id in self._retail.users() if id not in self.guard.users]
        self._used: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def make(self, on_task: Callable[[int, int], object]) -> list[Made]:
        """The tasks, in the order of their numbers; fewer than asked for where every cell has given up."""
        done: list[Made] = []
        failures: Counter[tuple[int, str]] = Counter()
        for cell in cycle(self._plan()):
            if len(done) == self.config.num_tasks or all(failures[c] >= GIVE_UP for c in self._plan()):
                break
            if failures[cell] >= GIVE_UP:
                continue
            made = self._one(len(done), cell, failures[cell])
            if made is None:
                failures[cell] += 1
                continue
            failures[cell] = 0
            done.append(made)
            on_task(len(done), self.config.num_tasks)
        return done

    def _plan(self) -> list[tuple[int, str]]:
        """The cells in turn, the refusals spread between them in their share."""
        grid = [(writes, burden) for writes in self.config.writes for burden in self.config.burdens]
        share = self.config.refusals
        if share == 0:
            return grid
        rounds = max(1, round(share * len(grid) / (1 - share) * 20))  # in 20 turns of the grid
        cells = grid * 20
        step = len(cells) / rounds
        for index in reversed(range(rounds)):
            cells.insert(int(index * step), REFUSAL)
        return cells

    def _one(self, number: int, cell: tuple[int, str], again: int) -> Made | None:
        rng = random.Random(f"{self.config.seed}/{number}/{cell}/{again}")
        for _ in range(TRIES):
            user = rng.choice(self._users)
            if self._used[user] >= self.config.per_user or self._room(user) < cell[0]:
                continue
            made = self._composer.compose(user, cell, rng)
            found = self._proved(number, made, rng) if made else None
            if found:
                self._used[user] += 1
                self._seen.add(_same(found.composed))
                return found
        return None

    def _room(self, user_id: str) -> int:
        """The most writes that a customer's orders could take."""
        status = Counter(self._rows["orders"][id]["status"] for id in self._rows["users"][user_id]["orders"])
        return 1 + 3 * status["pending"] + status["delivered"]

    def _proved(self, number: int, made: Composed, rng: random.Random) -> Made | None:
        """The task with its proof, or None with the reason counted."""
        text = write(made, rng)
        task = as_task(f"synth-retail-{self.config.seed}-{number:05}", made, text)
        try:
            if _same(made) in self._seen:
                raise Rejected("the same calls of the same customer as an earlier task")
            if missing(made, text):
                raise Rejected("a fact is missing from the text")
            if leaked(made, text, frozenset({made.user_id, *self._rows["users"][made.user_id]["orders"]})):
                raise Rejected("the text gives away an id")
            if self.guard.overlap(task):
                raise Rejected("it shares something with the test tasks")
            proof = self._prover.prove(made, task)
        except Rejected as reason:
            self.rejected[str(reason)] += 1
            return None
        return Made(composed=made, text=text, task=task, proof=proof, split=split_of(made.user_id))


def split_of(user_id: str) -> str:
    """The split of a customer, the same for every seed and size.

    >>> split_of("mei_li_1") in ("train-learn", "train-select", "test")
    True
    """
    place = int.from_bytes(hashlib.sha256(f"synth/{user_id}".encode()).digest()[:8]) / 2**64
    if place < SHARES["test"]:
        return "test"
    return "train-select" if place < SHARES["test"] + SHARES["train-select"] else "train-learn"


def as_task(id: str, made: Composed, text: Text) -> dict[str, Any]:
    """tau2's Task as JSON values."""
    calls = [call_of(made.auth), *map(call_of, made.reads), *made.writes]
    writes, burden = made.cell
    purpose = f"{writes} writes, burden {burden}" if writes else f"must be refused: {made.requests[0].breaks}"
    return {
        "id": id,
        "description": {"purpose": purpose, "relevant_policies": None, "notes": None},
        "user_scenario": text.scenario("retail"),
        "ticket": None,
        "initial_state": None,
        "evaluation_criteria": {
            "actions": [{"action_id": f"{id}_{i}", **asdict(call)} for i, call in enumerate(calls)],
            "communicate_info": [made.question.value] if made.question else [],
            "nl_assertions": None,
            "reward_basis": ["DB", "COMMUNICATE"],
        },
    }


def _same(made: Composed) -> tuple[str, str]:
    calls = sorted(str(asdict(request.call)) for request in made.requests)
    return made.user_id, "\n".join(calls)


def synthesise(
    config: SynthConfig, folder: Path, on_task: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, Any]:
    """Make the tasks and write them to `folder`; the card's numbers, JSON-ready. Raises UserError."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"`{folder}` is not empty", hint="name another folder with `--output`, or remove it")
    maker = Maker(config, Replayer(config.domain))
    made = maker.make(on_task)
    return write_folder(folder, config, made, rejected=maker.rejected, guard=maker.guard, identity=maker.replayer.identity())
