"""An independent reading of retail's policy.md and of what customers say: what made tasks are tested with.

It uses nothing of `tau2rl.synth`.

It works on tau2's db.json as it is on disk and on the words of a task. What it cannot read it does not pass: it raises.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tau2.domains.retail.utils import RETAIL_DB_PATH

Json = dict[str, Any]
WRITES = {
    "cancel_pending_order", "modify_pending_order_address", "modify_pending_order_items", "modify_pending_order_payment",
    "modify_user_address", "return_delivered_order_items", "exchange_delivered_order_items",
}  # fmt: skip


@cache
def database() -> Json:
    return json.loads(Path(RETAIL_DB_PATH).read_text("utf-8"))


def spoken(task: Json) -> list[str]:
    """Everything that the user has to say, line by line."""
    told = task["user_scenario"]["instructions"]
    return [told["reason_for_call"], *told["known_info"].splitlines()]


def words(task: Json) -> str:
    """What the user wants: without a wish that the next line takes back, and without what they say that they do not know."""
    lines: list[str] = []
    for line in spoken(task):
        if re.search(r"that last one", line):
            lines.pop()
        elif not re.search(r"(know|have|tell you) the number of that (order|reservation)", line):
            lines.append(line)
    return "\n".join(lines)


def writes(task: Json) -> list[Json]:
    return [action for action in task["evaluation_criteria"]["actions"] if action["name"] in WRITES]


def customer(task: Json) -> str:
    """The one user whom the words identify, by email or by name and zip code."""
    text = words(task)
    found = []
    for id, user in database()["users"].items():
        name = f"{user['name']['first_name']} {user['name']['last_name']}"
        by_zip = f"My name is {name} and my zip code is {user['address']['zip']}." in text
        if f"My name is {name} and my email is {user['email']}." in text or by_zip:
            found.append(id)
    assert len(found) == 1, (task["id"], found)
    return found[0]


def violations(task: Json) -> list[str]:
    """What the writes of the reference path do against the policy, carried out one after the other."""
    whole, user_id = database(), customer(task)
    named = {call["arguments"].get("order_id") for call in writes(task)}
    db = {**whole, "orders": {id: copy.deepcopy(order) for id, order in whole["orders"].items() if id in named}}
    return [f"{call['name']}: {why}" for call in writes(task) for why in _carry_out(db, user_id, call["name"], call["arguments"])]


def _carry_out(db: Json, user_id: str, name: str, given: Json) -> list[str]:
    wrong: list[str] = []
    user = db["users"][user_id]
    if name == "modify_user_address":
        return [] if given["user_id"] == user_id else ["another user's profile"]
    order = db["orders"][given["order_id"]]
    if order["user_id"] != user_id:
        wrong.append("another user's order")
    needed = "delivered" if "delivered" in name else "pending"
    if order["status"] != needed:
        wrong.append(f"the order is {order['status']}")
    paid = order["payment_history"][0]
    method = user["payment_methods"].get(given.get("payment_method_id"))
    if "payment_method_id" in given and method is None:
        wrong.append("no such payment method")
    if name == "cancel_pending_order":
        if given["reason"] not in ("no longer needed", "ordered by mistake"):
            wrong.append("not an acceptable reason")
        order["status"] = "cancelled"
    elif name == "modify_pending_order_payment":
        if given["payment_method_id"] == paid["payment_method_id"]:
            wrong.append("the same payment method")
        if method and method["source"] == "gift_card" and method["balance"] < paid["amount"]:
            wrong.append("the gift card does not cover the total")
        paid["payment_method_id"] = given["payment_method_id"]
    elif name == "return_delivered_order_items":
        if method and method["source"] != "gift_card" and given["payment_method_id"] != paid["payment_method_id"]:
            wrong.append("the refund goes elsewhere")
        order["status"] = "return requested"
    elif name in ("modify_pending_order_items", "exchange_delivered_order_items"):
        wrong += _swapped(db, order, given, method)
        order["status"] = "exchange requested" if "exchange" in name else "pending (item modified)"
    return wrong


def _swapped(db: Json, order: Json, given: Json, method: Json | None) -> list[str]:
    wrong: list[str] = []
    difference = 0.0
    if len(given["item_ids"]) != len(given["new_item_ids"]):
        return ["lists of different lengths"]
    for old_id, new_id in zip(given["item_ids"], given["new_item_ids"], strict=True):
        old = next(item for item in order["items"] if item["item_id"] == old_id)
        new = db["products"][old["product_id"]]["variants"].get(new_id)
        if new is None:
            wrong.append("another product")
            continue
        if not new["available"]:
            wrong.append("not in stock")
        if new["options"] == old["options"]:
            wrong.append("the same options")
        difference += new["price"] - old["price"]
    if method and method["source"] == "gift_card" and method["balance"] < round(difference, 2):
        wrong.append("the gift card does not cover the difference")
    return wrong


def order_meant(user_id: str, phrase: str) -> str:
    """The one order of a user that a phrase describes. Raises ValueError where that is not exactly one."""
    orders = {id: database()["orders"][id] for id in database()["users"][user_id]["orders"]}
    total = {id: order["payment_history"][0]["amount"] for id, order in orders.items()}
    if match := re.search(r"order (#W\d+)", phrase):
        return match[1]
    if match := re.search(r"the order with the (.+)", phrase):
        found = [id for id, o in orders.items() if any(item["name"].lower() == match[1].lower() for item in o["items"])]
    elif match := re.search(r"the order that ships to (.+)", phrase):
        found = [id for id, o in orders.items() if o["address"]["city"] == match[1]]
    elif match := re.search(r"my only (\w+) order", phrase):
        found = [id for id, o in orders.items() if o["status"] == match[1]]
    elif match := re.search(
        r"the (\w+) order that cost me the (least|most) in total|my (cheapest|most expensive) (\w+) order", phrase
    ):
        least = (match[2] or match[3]) in ("least", "cheapest")
        same = {id: total[id] for id, o in orders.items() if o["status"] == (match[1] or match[4])}
        best = min(same.values()) if least else max(same.values())
        found = [id for id, amount in same.items() if amount == best]
    else:
        raise ValueError(f"an order that cannot be read: {phrase}")
    if len(found) != 1:
        raise ValueError(f"{phrase}: {found}")
    return found[0]


ORDER = (
    r"(order #W\d+|the order (?:with the|that ships to) [^,;:.]+?(?=[,;:.]| for | to | and )|my only \w+ order"
    r"|the \w+ order that cost me the \w+ in total|my (?:cheapest|most expensive) \w+ order)"
)
BEST = re.compile(
    rf"(?:exchange|swap) the ([\w\- /]+?) (?:from|in) {ORDER} for the (cheapest|most expensive) (?:one|pair) "
    r"you have in stock(?: with the same ([\w ]+))?,"
)


def best_variants(task: Json) -> list[tuple[str, str, str]]:
    """(order, old item, new item) that the words "the cheapest one you have in stock" come to, by looking at every variant."""
    user_id, found = customer(task), []
    for name, phrase, which, same in BEST.findall(words(task)):
        order_id = order_meant(user_id, phrase)
        (item,) = [i for i in database()["orders"][order_id]["items"] if i["name"].lower() == name.lower()]
        variants = database()["products"][item["product_id"]]["variants"]
        fits = {
            id: v["price"]
            for id, v in variants.items()
            if v["available"] and (not same or v["options"][same] == item["options"][same])
        }
        best = min(fits.values()) if which == "cheapest" else max(fits.values())
        (chosen,) = [id for id, price in fits.items() if price == best]
        found.append((order_id, item["item_id"], chosen))
    return found


def orders_named(task: Json) -> list[str]:
    """The orders that the words describe, in their order."""
    user_id = customer(task)
    clauses = re.sub(r"what I paid[^.]*\.", "", words(task))
    return [order_meant(user_id, phrase) for phrase in re.findall(ORDER, clauses)]


def best_saving(task: Json) -> tuple[str, str, str] | None:
    """(order, old item, new item) of the one swap that saves most, where the words ask for it."""
    if not (match := re.search(r"out of everything (that has been delivered to me|in my pending orders)", words(task))):
        return None
    status = "delivered" if "delivered" in match[1] else "pending"
    orders = {id: database()["orders"][id] for id in database()["users"][customer(task)]["orders"]}
    savings: list[tuple[float, str, str, str]] = []
    for id, order in orders.items():
        for item in order["items"] if order["status"] == status else ():
            for new, variant in database()["products"][item["product_id"]]["variants"].items():
                if variant["available"]:
                    savings.append((round(item["price"] - variant["price"], 2), id, item["item_id"], new))
    best, order_id, old, new = max(savings)
    assert [saved for saved, *_ in savings].count(best) == 1, task["id"]
    return order_id, old, new


def payment_named(task: Json, method_id: str) -> bool:
    """Whether the words name this payment method of the customer, and no other one fits them."""
    methods = database()["users"][customer(task)]["payment_methods"]
    method = methods[method_id]
    same = [other for other in methods.values() if other["source"] == method["source"]]
    if method["source"] == "credit_card":
        return f"my {method['brand'].capitalize()} ending in {method['last_four']}" in words(task)
    return len(same) == 1 and {"paypal": "my PayPal account", "gift_card": "my gift card"}[method["source"]] in words(task)


def check(task: Json, proof: Json) -> None:
    """The writes are within the policy, and about what the words name."""
    assert customer(task) == proof["user_id"]
    assert violations(task) == [], task["id"]
    calls = [call["arguments"] for call in writes(task)]
    pairs = [(given["order_id"], given["item_ids"], given["new_item_ids"]) for given in calls if "new_item_ids" in given]
    swaps = {(order, old, new) for order, *items in pairs for old, new in zip(*items, strict=True)}
    saving = best_saving(task)
    told = {*orders_named(task), *([saving[0]] if saving else [])}
    for given in calls:
        assert given.get("order_id") in (None, *told), task["id"]
        assert "payment_method_id" not in given or payment_named(task, given["payment_method_id"]), task["id"]
        if "the address on my profile" not in words(task):
            assert all(given[key] in words(task) for key in ("address1", "address2", "zip") if key in given), task["id"]
    if calls:
        assert {*best_variants(task), *([saving] if saving else [])} <= swaps, task["id"]
