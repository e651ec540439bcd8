"""A request: one legal write, the words that ask for it, and what has to be read before its arguments are known.

And `Affordances`, what a domain offers so that requests can be drawn: its users, what they could ask for, how all of it is said.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tau2rl.synth.rules import RuleCheck, Tables, TaskCheck
from tau2rl.types import CallTool

Read = tuple[str, tuple[tuple[str, str], ...]]  # ("get_order_details", (("order_id", "#W1"),))
PAYMENTS = {"gift_card": "my gift card", "paypal": "my PayPal account", "certificate": "my travel certificate"}
MARGIN = 1.0  # dollars, or the unit of what is compared, by which a selector's optimum must beat the next candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorChoice:
    """What a selector chose, and from what: `SelectorChoice(what="new item", by="lowest price", chosen="1", margin=3.5, ...)`."""

    what: str
    by: str  # "lowest ..." or "highest ..."
    candidates: Mapping[str, float]  # every candidate with its value
    chosen: str
    margin: float  # to the next candidate; infinite where there is one only


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A description of a row: `Said(words="order #W123", reads=frozenset())`."""

    words: str
    reads: frozenset[Read]
    choices: tuple[SelectorChoice, ...] = ()
    depends: frozenset[str] = frozenset()  # the entities that are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How a user says who they are: `Identity(kind="email", say="My name is ...", facts=(...), known=..., unknown=())`."""

    kind: str
    say: str
    facts: tuple[str, ...]
    known: Read  # the read that shows who they are
    unknown: tuple[str, ...]  # what of it they do not know


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """A mistake of a user who then corrects themselves: `Slip(wrong="...", right="...", correction="Sorry, ...")`."""

    wrong: str
    right: str
    correction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAmount:
    """Something that the agent must say: `AskedAmount(say="how much I get back", value="487.32")`."""

    say: str
    value: str
    reads: frozenset[Read] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing that a user wants; where `breaks` is a rule, the agent must refuse it."""

    call: CallTool
    say: str  # a clause for "I'd like to ...": "cancel order #W123 because I ordered it by mistake"
    facts: tuple[str, ...]  # what the clause must hold, word for word
    reads: frozenset[Read]
    entity: str  # the order, reservation or profile that is written
    choices: tuple[SelectorChoice, ...] = ()
    depends: frozenset[str] = field(default=frozenset())  # what the selectors look at: other writes must leave it alone
    slip: Slip | None = None
    question: AskedAmount | None = None
    breaks: str = ""  # the id of the one rule that is broken
    told: Mapping[str, str] = field(default_factory=dict[str, str])  # what rules ask for and the call has no argument for
    looked_at: tuple[Read, ...] = ()  # what an agent reads to see that it is legal, beside `reads`


def read(tool: str, **arguments: str) -> Read:
    """A read call as a value: `read("get_order_details", order_id="#W1")`."""
    return tool, tuple(sorted(arguments.items()))


def call_of(read: Read) -> CallTool:
    """The call that carries out a read."""
    return CallTool(name=read[0], arguments=dict(read[1]))


def clear_choice(what: str, by: str, values: Mapping[str, float]) -> SelectorChoice | None:
    """The unique optimum of a selector over all its candidates, or None on a tie or too small a margin.

    >>> clear_choice("order", "lowest total", {"#W1": 10.0, "#W2": 12.5}).chosen
    '#W1'
    >>> clear_choice("order", "lowest total", {"#W1": 10.0, "#W2": 10.5}) is None
    True
    """
    sign = -1.0 if by.startswith("highest") else 1.0
    ranked = sorted(values, key=lambda id: (sign * values[id], id))
    if not ranked:
        return None
    margin = abs(values[ranked[1]] - values[ranked[0]]) if len(ranked) > 1 else float("inf")
    if margin < MARGIN:
        return None
    return SelectorChoice(what=what, by=by, candidates=dict(values), chosen=ranked[0], margin=round(margin, 2))


def burden(needs: Iterable[Iterable[Read]]) -> list[Read]:
    """The planner: the least set of reads that meets every need, in the order of reading."""
    rank = {"get_user_details": 0, "get_order_details": 1, "get_reservation_details": 1}
    return sorted({read for need in needs for read in need}, key=lambda read: (rank.get(read[0], 2), read))


def payment_words(method: Mapping[str, Any], methods: Mapping[str, Any]) -> str | None:
    """A payment method as its owner would name it; None where that would not be clear.

    >>> card = {"id": "c", "source": "credit_card", "brand": "visa", "last_four": "1234"}
    >>> payment_words(card, {"c": card})
    'my Visa ending in 1234'
    """
    same = [other for other in methods.values() if other["source"] == method["source"]]
    if method["source"] == "credit_card":
        twins = [other for other in same if other["last_four"] == method["last_four"]]
        return f"my {str(method['brand']).capitalize()} ending in {method['last_four']}" if len(twins) == 1 else None
    return PAYMENTS[method["source"]] if len(same) == 1 else None


def payment_in_words(rows: Tables, user_id: str, payment_id: str) -> str:
    """The same, as the agent says it; by its id where nothing else is clear."""
    methods = rows["users"][user_id]["payment_methods"]
    words = payment_words(methods[payment_id], methods)
    return words.replace("my ", "your ", 1) if words else payment_id


def named_payments(rows: Tables, user_id: str) -> dict[str, str]:
    """Id -> words of the payment methods that their owner can name."""
    methods = rows["users"][user_id]["payment_methods"]
    named = {id: payment_words(method, methods) for id, method in methods.items()}
    return {id: words for id, words in named.items() if words}


def user_read(user_id: str) -> Read:
    """The user's profile."""
    return read("get_user_details", user_id=user_id)


def joined(parts: Sequence[str], word: str = "and") -> str:
    """Words in a row.

    >>> joined(["a", "b", "c"]), joined(["a"]), joined(["a", "b"], "or")
    ('a, b and c', 'a', 'a or b')
    """
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def count_words(number: int, noun: str) -> str:
    """A number of things.

    >>> count_words(1, "checked bag"), count_words(3, "checked bag")
    ('1 checked bag', '3 checked bags')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def row_values(row: Any) -> list[str]:
    """Every leaf of a row as text."""
    if isinstance(row, Mapping):
        return [text for value in row.values() for text in row_values(value)]
    if isinstance(row, list):
        return [text for value in row for text in row_values(value)]
    return [str(row)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How an agent of a domain talks, beside what it does."""

    identify: tuple[str, ...]  # asks who the user is
    identify_again: str  # the same, after the user spoke of something else
    cautions: Mapping[str, str]  # tool -> what is said before its call, beside what it does


class Affordances(ABC):
    """One domain; every draw is from `rng`, so that the same seed gives the same task."""

    table: ClassVar[str]  # of what users have: a row of `users` lists its ids under the same name
    entity_pattern: ClassVar[str]  # what its ids look like in a text
    unordered: ClassVar[frozenset[str]]  # arguments that are lists, whose order has no meaning
    checks: ClassVar[Mapping[str, RuleCheck]]
    task_checks: ClassVar[Mapping[str, TaskCheck]]
    manners: ClassVar[Manners]
    shared: ClassVar[str]  # what made tasks and test tasks have in common all the same, for the data card

    def __init__(self, rows: Tables) -> None:
        self.rows = rows

    @abstractmethod
    def users(self) -> list[str]:
        """The users who have something, in the order of their ids."""

    @abstractmethod
    def room(self, user_id: str) -> int:
        """The most writes that a conversation with this user could have."""

    @abstractmethod
    def is_clear(self, user_id: str, value: str) -> bool:
        """Whether an amount, found as a part of what is said, can only be this answer."""

    @abstractmethod
    def identity(self, user_id: str, rng: random.Random) -> Identity:
        """How the user says who they are."""

    @abstractmethod
    def draw(self, user_id: str, rng: random.Random) -> Request | None:
        """One request of this user, legal or not; None where the draw came to nothing."""

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
