"""A reference conversation of a composed task: the agent asks for what it needs, looks things up, and confirms before each write.

It is for `tau2rl seed` with the gold teacher, in the form that `env/task_files.py` reads; the scripted user answers it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from tau2rl.synth.compose import Composed
from tau2rl.synth.request import joined
from tau2rl.synth.retail_words import address_words, payment_words, product_words
from tau2rl.synth.rules import Rows, RuleBook
from tau2rl.synth.texts import Text
from tau2rl.types import CallTool

IDENTIFY = (
    "I'd be happy to help with that. To find your account, could you tell me your email address, or your full name and zip code?",
    "Certainly. May I have your email address first, or your first and last name with your zip code?",
    "I can help you with that. Which email address is on your account, or what are your full name and zip code?",
)
IDENTIFY_AGAIN = "Thank you, I have noted that. And what is your email address, or your full name and zip code?"
FOUND = (
    "Thank you, {name}, I have found your account. What else can I do for you?",
    "Thank you, {name}. Is there anything else?",
)
MORE = ("Noted. Is there anything else?", "All right, and what else can I do for you?", "I have that. Anything else?")
CONFIRM = (
    "This is what I will do: {what}. Do you confirm (yes or no)?",
    "I will now {what}. Shall I go ahead (yes or no)?",
    "If you agree, I will {what}. Is that right (yes or no)?",
)
ALL_ITEMS = "Only one such change of an order is possible, so please make sure that nothing is missing. "
DONE = ("That is done.", "Everything is done now.", "All of that is done.")


def demonstrate(
    made: Composed, text: Text, calls: Sequence[tuple[str, CallTool]], *, rows: Rows, book: RuleBook, rng: random.Random
) -> list[dict[str, str]]:
    """The steps; `calls` are the reference actions by their ids: first who it is, then the reads, then the writes."""
    lines = text.known if text.behaviour["pace"] != "all_at_once" else ()
    return [
        *_listen(made, lines, calls[0][0], rows, rng),
        *_act(made, calls[1:], rows, rng),
        {"say": _last_words(made, book, rng)},
    ]


def _listen(made: Composed, lines: Sequence[str], identify: str, rows: Rows, rng: random.Random) -> Iterator[dict[str, str]]:
    """Ask for a line at a time until there are no more; look the customer up as soon as they said who they are."""
    known = lines.index(made.identity) + 1 if lines else 0
    for number in range(known):
        yield {"say": IDENTIFY_AGAIN if number else rng.choice(IDENTIFY)}
    yield {"action": identify}
    name = rows["users"][made.user_id]["name"]["first_name"]
    for number in range(known, len(lines) + 1 if lines else 0):
        yield {"say": rng.choice(FOUND).format(name=name) if number == known else rng.choice(MORE)}


def _act(made: Composed, calls: Sequence[tuple[str, CallTool]], rows: Rows, rng: random.Random) -> Iterator[dict[str, str]]:
    for id, call in calls:
        if call in made.writes:
            swap = call.name in ("modify_pending_order_items", "exchange_delivered_order_items")
            what = rng.choice(CONFIRM).format(what=in_words(rows, made.user_id, call))
            yield {"say": f"{ALL_ITEMS if swap else ''}{what}"}
        yield {"action": id}


def _last_words(made: Composed, book: RuleBook, rng: random.Random) -> str:
    refused = [f"I am sorry, but {book.refusal(r.breaks).format(order=r.entity)}." for r in made.requests if r.breaks]
    done = [rng.choice(DONE)] if made.writes else []
    answer = [f"The amount that you asked for is ${made.question.value}."] if made.question else []
    return " ".join([*refused, *done, *answer, "Is there anything else?"])


def in_words(rows: Rows, user_id: str, call: CallTool) -> str:
    """What a call does, as the agent says it: "cancel order #W123 (no longer needed)"."""
    given: dict[str, Any] = dict(call.arguments)
    order = f"order {given.get('order_id')}"
    match call.name:
        case "cancel_pending_order":
            return f"cancel {order} ({given['reason']}), and the refund goes back to the way it was paid"
        case "modify_pending_order_payment":
            return f"change the payment of {order} to {_payment(rows, user_id, given)}"
        case "modify_pending_order_address":
            return f"change the shipping address of {order} to {address_words(given)}"
        case "modify_user_address":
            return f"change the default address of your profile to {address_words(given)}"
        case "return_delivered_order_items":
            names = joined([f"the {_product(rows, given['order_id'], id)}" for id in given["item_ids"]])
            return f"return {names} of {order}, with the refund to {_payment(rows, user_id, given)}"
        case _:
            pairs = zip(given["item_ids"], given["new_item_ids"], strict=True)
            swaps = [f"the {_product(rows, given['order_id'], old)} for {_variant(rows, new)}" for old, new in pairs]
            return f"exchange, in {order}, {joined(swaps)}, and settle the price difference with {_payment(rows, user_id, given)}"


def _payment(rows: Rows, user_id: str, given: dict[str, Any]) -> str:
    methods = rows["users"][user_id]["payment_methods"]
    words = payment_words(methods[given["payment_method_id"]], methods)
    return words.replace("my ", "your ", 1) if words else given["payment_method_id"]


def _product(rows: Rows, order_id: str, item_id: str) -> str:
    return product_words(next(item["name"] for item in rows["orders"][order_id]["items"] if item["item_id"] == item_id))


def _variant(rows: Rows, item_id: str) -> str:
    variant = next(product["variants"][item_id] for product in rows["products"].values() if item_id in product["variants"])
    options = ", ".join(f"{key} {value}" for key, value in variant["options"].items())
    return f"item {item_id} ({options})"
