"""What the making of tasks needs to know of a domain: its customers, what they could ask for, and how all of it is said."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tau2rl.synth.request import Identity, Read, Request
from tau2rl.synth.rules import Check, Rows, TaskCheck
from tau2rl.types import CallTool


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How an agent of a domain talks, beside what it does."""

    identify: tuple[str, ...]  # asks who the customer is
    identify_again: str  # the same, after the customer spoke of something else
    cautions: Mapping[str, str]  # tool -> what is said before its call, beside what it does


class Affordances(ABC):
    """One domain; every draw is from `rng`, so that the same seed gives the same task."""

    table: ClassVar[str]  # of what customers have: a row of `users` lists its ids under the same name
    entity_pattern: ClassVar[str]  # what its ids look like in a text
    unordered: ClassVar[frozenset[str]]  # arguments that are lists, whose order has no meaning
    checks: ClassVar[Mapping[str, Check]]
    task_checks: ClassVar[Mapping[str, TaskCheck]]
    manners: ClassVar[Manners]
    shared: ClassVar[str]  # what made tasks and test tasks have in common all the same, for the data card

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @abstractmethod
    def users(self) -> list[str]:
        """The customers who have something, in the order of their ids."""

    @abstractmethod
    def room(self, user_id: str) -> int:
        """The most writes that a conversation with this customer could have."""

    @abstractmethod
    def is_clear(self, user_id: str, value: str) -> bool:
        """Whether an amount, found as a part of what is said, can only be this answer."""

    @abstractmethod
    def identity(self, user_id: str, rng: random.Random) -> Identity:
        """How the customer says who they are."""

    @abstractmethod
    def draw(self, user_id: str, rng: random.Random) -> Request | None:
        """One request of this customer, legal or not; None where the draw came to nothing."""

    @abstractmethod
    def draw_refusal(self, user_id: str, rng: random.Random) -> Request | None:
        """One request that is against the policy, if it is, with a question."""

    @abstractmethod
    def apart(self, left: Request, right: Request) -> bool:
        """Whether two different tools may write the same entity in one conversation."""

    def fits(self, left: Request, right: Request) -> bool:
        """Whether one person would ask for both in one conversation."""
        return True

    @abstractmethod
    def looked_at(self, request: Request) -> list[Read]:
        """What an agent reads to see whether the policy allows a request, beside what its arguments need."""

    @abstractmethod
    def unknown(self, spoken: str) -> tuple[list[str], str]:
        """(what a user who says this does not know, beside who they are; "any ...")."""

    @abstractmethod
    def in_words(self, user_id: str, call: CallTool) -> str:
        """What a call does, as the agent says it: "cancel order #W123 (no longer needed)"."""

    @abstractmethod
    def other_values(self, user_id: str, call: CallTool, argument: str) -> list[Any]:
        """Other values of an argument, each of which has to end at another database."""
