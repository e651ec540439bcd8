"""An independent reading of retail's policy.md and of what users say: what made tasks are tested with.

It uses nothing of `tau2rl.synth`. From the words of a task and tau2's db.json as it is on disk it works out every call that the
user asks for with all its arguments, and the amount that has to be said. What it cannot read it does not pass: it raises.
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
    return _violations(customer(task), [(call["name"], call["arguments"]) for call in writes(task)])


def against_the_policy(user_id: str, name: str, given: Json) -> list[str]:
    """What one call does against the policy."""
    return _violations(user_id, [(name, given)])


def _violations(user_id: str, calls: list[tuple[str, Json]]) -> list[str]:
    whole, named = database(), {given.get("order_id") for _, given in calls}
    db = {**whole, "orders": {id: copy.deepcopy(order) for id, order in whole["orders"].items() if id in named}}
    return [f"{name}: {why}" for name, given in calls for why in _carry_out(db, user_id, name, given)]


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


@cache
def _names() -> tuple[str, str]:
    """Patterns of every product and every city, the longest first."""
    products = {product["name"].lower() for product in database()["products"].values()}
    cities = {row["address"]["city"] for table in ("orders", "users") for row in database()[table].values()}
    return tuple("|".join(sorted(map(re.escape, names), key=len, reverse=True)) for names in (products, cities))  # pyright: ignore[reportReturnType]


def order_pattern() -> str:
    product, city = _names()
    return (
        rf"(order #W\d+|the order with the (?i:{product})|the order that ships to (?:{city})|my only \w+ order"
        r"|the \w+ order that cost me the \w+ in total|my (?:cheapest|most expensive) \w+ order)"
    )


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


def _says(phrase: str, key: str, value: str) -> bool:
    """Whether the words after "one" or "a pair" say that an option has this value."""
    part = key.split()[0] if key in ("lens color", "lens type", "frame color", "frame material", "dial color") else ""
    if part:
        return re.search(rf"\b{value} {part}(?:es)?\b", phrase) is not None
    if value in ("yes", "no", "not resistant"):
        what = "water resistant" if key == "water resistance" else key
        return f"that is {'' if value == 'yes' else 'not '}{what}" in phrase
    if value == "none":
        word = {"armrest": "armrests", "compatibility": "support", "features": "features"}.get(key, key)
        return re.search(rf"without (?:\w+ )*?{word}\b", phrase) is not None
    whole = {"Wi-Fi + Cellular": "Wi-Fi and cellular", "battery": "batteries"}.get(value, value)
    if key == "piece count":
        whole = value.replace("-piece", " pieces")
    more = r"(?! and cellular)" if value == "Wi-Fi" else ""
    return re.search(rf"(?<![\w.-]){re.escape(whole)}(?![\w.-]){more}", phrase) is not None


def _variant(item: Json, phrase: str) -> str:
    """The one variant in stock, other than the item itself, that the words after "for" come to."""
    variants = {id: v for id, v in database()["products"][item["product_id"]]["variants"].items() if v["available"]}
    if match := re.fullmatch(r"the (cheapest|most expensive) (?:one|pair) you have in stock(?: with the same ([\w ]+))?", phrase):
        key = {"number of pieces": "piece count" if "piece count" in item["options"] else "pieces"}.get(match[2], match[2])
        key = key if key is None or key in item["options"] else key.lower()
        fits = {id: v["price"] for id, v in variants.items() if key is None or v["options"][key] == item["options"][key]}
        best = min(fits.values()) if match[1] == "cheapest" else max(fits.values())
        found = [id for id, price in fits.items() if price == best]
    else:
        described = re.fullmatch(r"(?:one|a pair) (.+)", phrase)
        assert described, phrase
        stated: dict[str, int] = {}
        for id, variant in variants.items():
            changed = {key: value for key, value in variant["options"].items() if item["options"][key] != value}
            if changed and all(_says(described[1], key, value) for key, value in changed.items()):
                stated[id] = len(changed)
        found = [id for id, number in stated.items() if number == max(stated.values())]
    assert len(found) == 1, (phrase, item["name"], found)
    assert found[0] != item["item_id"], phrase
    return found[0]


def _best_saving(user_id: str, clause: str) -> Json:
    """The one swap that saves most."""
    status = "delivered" if "that has been delivered to me" in clause else "pending"
    assert status == "delivered" or "in my pending orders" in clause
    orders = {id: database()["orders"][id] for id in database()["users"][user_id]["orders"]}
    savings: list[tuple[float, str, str, str]] = []
    for id, order in orders.items():
        for item in order["items"] if order["status"] == status else ():
            for new, variant in database()["products"][item["product_id"]]["variants"].items():
                if variant["available"]:
                    savings.append((round(item["price"] - variant["price"], 2), id, item["item_id"], new))
    best, order_id, old, new = max(savings)
    assert [saved for saved, *_ in savings].count(best) == 1, clause
    return {"order_id": order_id, "item_ids": [old], "new_item_ids": [new]}


def _item(order_id: str, name: str) -> Json:
    """The one item of an order that has this name."""
    found = [item for item in database()["orders"][order_id]["items"] if item["name"].lower() == name.lower()]
    assert len(found) == 1, (order_id, name)
    return found[0]


def _payment(user_id: str, clause: str) -> str:
    """The one payment method of a user that a clause names."""
    found: list[str] = []
    for id, method in database()["users"][user_id]["payment_methods"].items():
        said = {"paypal": "my PayPal account", "gift_card": "my gift card"}.get(method["source"])
        if (said or f"my {method['brand'].capitalize()} ending in {method['last_four']}") in clause:
            found.append(id)
    assert len(found) == 1, (clause, found)
    return found[0]


def _address(user_id: str, phrase: str) -> Json:
    if phrase.startswith("the address on my profile"):
        return dict(database()["users"][user_id]["address"])
    found = re.match(r"([^,]+), ([^,]+), ([^,]+), ([A-Z]{2}) (\d{5}), (USA)", phrase)
    assert found, phrase
    return dict(zip(("address1", "address2", "city", "state", "zip", "country"), found.groups(), strict=True))


def _call(user_id: str, clause: str) -> tuple[str, Json]:
    """The call that a line asks for."""
    if found := re.search(r"change the default address on my profile to (.+)", clause):
        return "modify_user_address", {"user_id": user_id, **_address(user_id, found[1])}
    if "a single item, the one out of everything" in clause:
        given = _best_saving(user_id, clause)
        name = "modify_pending_order_items" if re.search(r"\bswap a single", clause) else "exchange_delivered_order_items"
        return name, {**given, "payment_method_id": _payment(user_id, clause)}
    phrases = re.findall(order_pattern(), clause)
    assert len(phrases) == 1 or " only after " in clause or " when the other " in clause, clause
    order_id = order_meant(user_id, phrases[0])
    given = {"order_id": order_id}
    if found := re.search(r"\bcancel .+, because (.+?)\.?$", clause):
        reason = next(
            (r for r, word in (("no longer needed", "need"), ("ordered by mistake", "mistake")) if word in found[1]), ""
        )
        return "cancel_pending_order", {**given, "reason": reason or found[1]}
    if found := re.search(rf"change the shipping address of {order_pattern()} to (.+)", clause):
        return "modify_pending_order_address", {**given, **_address(user_id, found[2])}
    given["payment_method_id"] = _payment(user_id, clause)
    if "switch the payment for" in clause:
        return "modify_pending_order_payment", given
    if found := re.search(rf"\breturn (.+?) from {order_pattern()} and get the refund to", clause):
        names = re.findall(r"the (.+?)(?:, (?=the )| and (?=the )|$)", found[1])
        return "return_delivered_order_items", {**given, "item_ids": [_item(order_id, name)["item_id"] for name in names]}
    if found := re.search(rf"\b(exchange|swap) the ([\w\- /]+?) (?:from|in) {order_pattern()} for (.+?), and settle any", clause):
        pairs = [(found[2], found[4])]
    else:
        found = re.search(
            rf"\b(exchange|swap) (two|three|four) items (?:from|in) {order_pattern()}: (.+); and settle any", clause
        )
        assert found, clause
        pairs = [part.removeprefix("the ").split(" for ", 1) for part in found[4].split("; ")]
        assert len(pairs) == ("two", "three", "four").index(found[2]) + 2, clause
    items = [_item(order_id, name) for name, _ in pairs]
    new = [_variant(item, what.removesuffix(", everything else the same")) for item, (_, what) in zip(items, pairs, strict=True)]
    name = "modify_pending_order_items" if found[1] == "swap" else "exchange_delivered_order_items"
    return name, {**given, "item_ids": [item["item_id"] for item in items], "new_item_ids": new}


QUESTIONS = {
    "how much money I get back for the cancelled order": "cancel_pending_order",
    "how much the refund for the return comes to in total": "return_delivered_order_items",
    "how big the price difference is in total": "items",
    "what I paid for that order in total": "",
    "what I paid in total for my order": "",
}


def asked_for(task: Json) -> tuple[list[tuple[str, Json]], list[str]]:
    """(the calls that the words come to, the amounts that have to be said)."""
    user_id, clauses, questions = customer(task), list[str](), list[str]()
    for line in words(task).splitlines():
        if found := re.match(r"Sorry, .* (?:The right one is|The truth is that) (.+)\.$", line):
            begin = " because " if "reason" in line else " to "
            clauses[-1] = f"{clauses[-1].rpartition(begin)[0]}{begin}{found[1]}."
        elif any(asked in line for asked in QUESTIONS):
            questions.append(line)
        elif not line.startswith("My name is"):
            clauses.append(line)
    calls = [_call(user_id, clause) for clause in clauses]
    for number, (clause, (name, given)) in enumerate(zip(clauses, calls, strict=True)):
        before = [n for n, g in calls[:number] if g.get("order_id") == given.get("order_id", "none")]
        assert ("the other change" in clause) == (bool(before) and "items" in name), clause
    return calls, [_answer(line, calls) for line in questions]


def _answer(line: str, calls: list[tuple[str, Json]]) -> str:
    orders = database()["orders"]
    wanted = next(tool for asked, tool in QUESTIONS.items() if asked in line)
    if found := re.search(r"for my order (#W\d+)", line):
        return f"{orders[found[1]]['payment_history'][0]['amount']:.2f}"
    ((name, given),) = [
        (name, given) for name, given in calls if wanted in name and (wanted != "items" or "new_item_ids" in given)
    ]
    order = orders[given["order_id"]]
    if name == "cancel_pending_order" or not wanted:
        return f"{order['payment_history'][0]['amount']:.2f}"
    old = sum(item["price"] for item in order["items"] if item["item_id"] in given["item_ids"])
    if wanted != "items":
        return f"{old:.2f}"
    variants = {id: variant for product in database()["products"].values() for id, variant in product["variants"].items()}
    return f"{abs(sum(variants[id]['price'] for id in given['new_item_ids']) - old):.2f}"


def _key(name: str, given: Json) -> str:
    """A call, whose items have no order."""
    pairs = sorted(zip(given.get("item_ids", ()), given.get("new_item_ids", given.get("item_ids", ())), strict=False))
    rest = {key: value for key, value in given.items() if key not in ("item_ids", "new_item_ids")}
    lengths = {len(given[key]) for key in ("item_ids", "new_item_ids") if key in given}
    return json.dumps([name, rest, pairs, sorted(lengths)], sort_keys=True)


def check(task: Json, proof: Json) -> None:
    """The writes are what the words come to and within the policy; where there are none, the one request is against it."""
    assert customer(task) == proof["user_id"]
    calls, told = asked_for(task)
    assert task["evaluation_criteria"]["communicate_info"] == told, task["id"]
    if proof["writes"]:
        assert sorted(_key(*call) for call in calls) == sorted(_key(c["name"], c["arguments"]) for c in writes(task)), task["id"]
        assert violations(task) == [], task["id"]
    else:
        assert not writes(task), task["id"]
        ((name, given),) = calls
        assert against_the_policy(customer(task), name, given), task["id"]
