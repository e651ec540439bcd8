"""What makes the tasks of one domain, for `make.py`: draws of a cell of its grid, their proofs, and its part of the data card."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

Json = dict[str, Any]
Cell = tuple[Any, ...]  # a place on the grid, JSON values: (3, "6-9"), (4, "mms", "hard")


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


D = TypeVar("D", bound=Draft)


class Generator(ABC, Generic[D]):
    """One domain; every draw is from `rng`, so that the same seed gives the same task."""

    licence: ClassVar[str]
    declined: ClassVar[Cell]  # of the tasks in which the agent must not do what it is asked for; no part of `grid`
    spent: Json | None = None  # what a model took that wrote the texts

    @abstractmethod
    def grid(self) -> Sequence[Cell]:
        """The cells that get equal parts."""

    @abstractmethod
    def draw(self, id: str, cell: Cell, rng: random.Random, free: Callable[[str], bool]) -> D | None:
        """A task of this cell about a customer who is `free`, or None where the draw came to nothing."""

    @abstractmethod
    def prove(self, draft: D) -> Json:
        """What was tried on it, JSON-ready. Raises Rejected."""

    @abstractmethod
    def finish(self, draft: D, proof: Json, split: str) -> Made:
        """The task in its last words, with its proof. Raises Rejected."""

    @abstractmethod
    def counts(self, made: Sequence[Made]) -> Json:
        """Its own numbers for the data card: `grid_head`, `grid`, `proofs`, `contamination` and others."""

    @abstractmethod
    def in_words(self, facts: Mapping[str, Any]) -> str:
        """Its own part of the data card as Markdown."""

    @abstractmethod
    def identity(self) -> Json:
        """What pins the data that the tasks are made from."""
