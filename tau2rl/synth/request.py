"""A request: one legal write, the words that ask for it, and what has to be read before its arguments are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tau2rl.synth.rules import Rows
from tau2rl.types import CallTool

Read = tuple[str, tuple[tuple[str, str], ...]]  # ("get_order_details", (("order_id", "#W1"),))
PAYMENTS = {"gift_card": "my gift card", "paypal": "my PayPal account", "certificate": "my travel certificate"}
MARGIN = 1.0  # dollars, or the unit of what is compared, by which a selector's optimum must beat the next candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a selector chose, and from what: `Choice(what="new item", by="lowest price", chosen="1", margin=3.5, ...)`."""

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
    choices: tuple[Choice, ...] = ()
    depends: frozenset[str] = frozenset()  # the entities that are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How a customer says who they are: `Identity(kind="email", say="My name is ...", facts=(...), known=..., unknown=())`."""

    kind: str
    say: str
    facts: tuple[str, ...]
    known: Read  # the read that shows who they are
    unknown: tuple[str, ...]  # what of it they do not know


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """A mistake of a customer who then corrects themselves: `Slip(wrong="...", right="...", correction="Sorry, ...")`."""

    wrong: str
    right: str
    correction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something that the agent must say: `Question(say="how much I get back", value="487.32")`."""

    say: str
    value: str
    reads: frozenset[Read] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing that a customer wants; where `breaks` is a rule, the agent must refuse it."""

    call: CallTool
    say: str  # a clause for "I'd like to ...": "cancel order #W123 because I ordered it by mistake"
    facts: tuple[str, ...]  # what the clause must hold, word for word
    reads: frozenset[Read]
    entity: str  # the order, reservation or profile that is written
    choices: tuple[Choice, ...] = ()
    depends: frozenset[str] = field(default=frozenset())  # what the selectors look at: other writes must leave it alone
    slip: Slip | None = None
    question: Question | None = None
    breaks: str = ""  # the id of the one rule that is broken
    told: Mapping[str, str] = field(default_factory=dict[str, str])  # what rules ask for and the call has no argument for
    looked_at: tuple[Read, ...] = ()  # what an agent reads to see that it is legal, beside `reads`


def read(tool: str, **arguments: str) -> Read:
    """A read call as a value: `read("get_order_details", order_id="#W1")`."""
    return tool, tuple(sorted(arguments.items()))


def call_of(read: Read) -> CallTool:
    """The call that carries out a read."""
    return CallTool(name=read[0], arguments=dict(read[1]))


def choose(what: str, by: str, values: Mapping[str, float]) -> Choice | None:
    """The unique optimum of a selector over all its candidates, or None on a tie or too small a margin.

    >>> choose("order", "lowest total", {"#W1": 10.0, "#W2": 12.5}).chosen
    '#W1'
    >>> choose("order", "lowest total", {"#W1": 10.0, "#W2": 10.5}) is None
    True
    """
    sign = -1.0 if by.startswith("highest") else 1.0
    ranked = sorted(values, key=lambda id: (sign * values[id], id))
    if not ranked:
        return None
    margin = abs(values[ranked[1]] - values[ranked[0]]) if len(ranked) > 1 else float("inf")
    if margin < MARGIN:
        return None
    return Choice(what=what, by=by, candidates=dict(values), chosen=ranked[0], margin=round(margin, 2))


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


def payment_in_words(rows: Rows, user_id: str, payment_id: str) -> str:
    """The same, as the agent says it; by its id where nothing else is clear."""
    methods = rows["users"][user_id]["payment_methods"]
    words = payment_words(methods[payment_id], methods)
    return words.replace("my ", "your ", 1) if words else payment_id


def named_payments(rows: Rows, user_id: str) -> dict[str, str]:
    """Id -> words of the payment methods that their owner can name."""
    methods = rows["users"][user_id]["payment_methods"]
    named = {id: payment_words(method, methods) for id, method in methods.items()}
    return {id: words for id, words in named.items() if words}


def user_read(user_id: str) -> Read:
    """The customer's profile."""
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
