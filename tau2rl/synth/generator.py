"""What makes the tasks of one domain, for `make.py`: draws of a cell of its grid, their proofs, and its part of the data card."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from tau2rl.synth.failure_clusters import ANYTHING, Cell, Failures, Focus, turns

Json = dict[str, Any]


class Rejected(Exception):
    """A task that does not hold; the message is the reason, in the same words for the same reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A task before it is proved."""

    user_id: str
    same: str  # two tasks with the same text here are one task told twice
    task: Json  # tau2's Task as JSON values, with a `demonstration` (`env/task_files.py`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A proved task."""

    user_id: str
    task: Json
    row: Json  # its line in `proofs.jsonl`, with `task_id`, `user_id`, `behaviour`, `question`, `rewards`
    split: str  # "train-learn", "train-select" or "test"


class Wording:
    """Puts proved tasks into their last words, in the order in which they were given; here they stay as they are.

    with Wording() as wording:
        wording.add([made])
        told = wording.settle()  # [[made in its words], ...]
    """

    def __init__(self) -> None:
        self._told: list[list[Made]] = []

    def __enter__(self) -> Wording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End what is still under way."""

    def add(self, same: Sequence[Made]) -> None:
        """Take these ways of one task."""
        self._told.append(list(same))

    def settle(self) -> list[list[Made]]:
        """What was added since the last call, in its order; nothing in the place of a task that has no words."""
        told, self._told = self._told, []
        return told


D = TypeVar("D", bound=Draft)


class TaskGenerator(ABC, Generic[D]):
    """One domain; every draw is from `rng`, so that the same seed gives the same task."""

    licence: ClassVar[str]
    apart: ClassVar[str] = "a customer"  # what no two of `train-learn`, `train-select` and `test` share
    declined: ClassVar[Cell]  # of the tasks in which the agent must not do what it is asked for; no part of `grid`
    spent: Json | None = None  # what a model took that wrote the texts
    failures: Failures | None = None  # what the tasks are made for, where that is failures of runs

    @abstractmethod
    def grid(self) -> Sequence[Cell]:
        """The cells that get equal parts."""

    def plan(self, declined: float) -> list[Cell]:
        """The cells in turn, the declined ones spread between them in their share; or the clusters of failures in theirs.

        Each cluster in its cells, with its key at their end: (3, "6-9", "missing_write/cancel_pending_order").
        """
        if self.failures is not None:
            return [(*cell, cluster.key) for cell, cluster in turns(self.failures.clusters)]
        grid = list(self.grid())
        if declined == 0:
            return grid
        rounds = max(1, round(declined * len(grid) / (1 - declined) * 20))  # in 20 turns of the grid
        cells = grid * 20
        step = len(cells) / rounds
        for index in reversed(range(rounds)):
            cells.insert(int(index * step), self.declined)
        return cells

    def is_declined(self, cell: Cell) -> bool:
        """Whether the agent must not do what it is asked for in the tasks of a cell."""
        return cell[: len(self.declined)] == self.declined

    def focus(self, cell: Cell) -> Focus:
        """What a task of a cell of the plan must have."""
        clusters = self.failures.clusters if self.failures else ()
        return next((cluster.focus for cluster in clusters if cluster.key == cell[-1]), ANYTHING)

    @abstractmethod
    def draw(self, id: str, cell: Cell, rng: random.Random, free: Callable[[str], bool]) -> D | None:
        """A task of this cell about a user who is `free`, or None where the draw came to nothing."""

    def split_key(self, draft: D) -> str:
        """What stays in one split, with all its tasks: what `apart` says, of this task."""
        return draft.user_id

    @abstractmethod
    def prove(self, draft: D) -> Json:
        """What was tried on it, JSON-ready. Raises Rejected."""

    @abstractmethod
    def finish(self, draft: D, proof: Json, split: str) -> list[Made]:
        """The task with its proof, in the ways in which it is told; the first is the draft."""

    def wording(self, rejected: Counter[str]) -> Wording:
        """What puts the tasks into their last words; `rejected` counts what it throws away."""
        return Wording()

    @abstractmethod
    def counts(self, made: Sequence[Made]) -> Json:
        """Its own numbers for the data card: `grid_head`, `grid`, `proofs`, `contamination` and others."""

    @abstractmethod
    def in_words(self, facts: Mapping[str, Any]) -> str:
        """Its own part of the data card as Markdown."""

    @abstractmethod
    def identity(self) -> Json:
        """What pins the data that the tasks are made from."""
