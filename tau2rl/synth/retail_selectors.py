"""How a retail customer says which order and which variant, and what has to be read to find out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tau2rl.synth.request import Choice, Read, Said, choose, read, user_read
from tau2rl.synth.retail_words import options_words, product_words
from tau2rl.synth.rules import Rows

NOT_NOUNS = {"waterproof", "bagged/bagless", "water resistance", "gender", "skin tone"}  # that "with the same ..." cannot name
NOUNS = {"pieces": "number of pieces", "piece count": "number of pieces", "ram": "RAM"}  # what it calls others


def order_read(order_id: str) -> Read:
    """One order."""
    return read("get_order_details", order_id=order_id)


def total(order: Mapping[str, Any]) -> float:
    """What was paid for an order, in dollars."""
    return float(order["payment_history"][0]["amount"])


def describe_order(rows: Rows, user_id: str, order_id: str, rng: random.Random, but: Collection[str] = ()) -> Said:
    """One of the ways to say which order is meant, each true of this order alone; by its id where nothing else is.

    `but`: products that are named beside it anyway, so that "the order with the skateboard" would say it twice.
    """
    orders = {id: rows["orders"][id] for id in rows["users"][user_id]["orders"]}
    order, status = orders[order_id], orders[order_id]["status"]
    found = [Said(words=f"order {order_id}", reads=frozenset())]
    names = Counter(name for other in orders.values() for name in {item["name"] for item in other["items"]})
    own = sorted({item["name"] for item in order["items"] if names[item["name"]] == 1 and item["name"] not in but})
    certificate = frozenset({user_read(user_id), order_read(order_id)})
    if own:
        words = f"the order with the {product_words(rng.choice(own))}"
        found.append(Said(words=words, reads=certificate, depends=frozenset()))
    cities = Counter(other["address"]["city"] for other in orders.values())
    if cities[order["address"]["city"]] == 1:
        # Its own address too: a change of it must not come before.
        words = f"the order that ships to {order['address']['city']}"
        found.append(Said(words=words, reads=certificate, depends=frozenset(orders)))
    if status in ("pending", "delivered"):
        same = {id: total(other) for id, other in orders.items() if other["status"] == status}
        everything = frozenset({user_read(user_id), *map(order_read, orders)})
        others = frozenset(orders) - {order_id}
        if len(same) == 1:
            found.append(Said(words=f"my only {status} order", reads=everything, depends=others))
        for by, word, adjective in (("lowest total", "least", "cheapest"), ("highest total", "most", "most expensive")):
            choice = choose("order", by, same)
            if len(same) > 1 and choice and choice.chosen == order_id:
                words = rng.choice((f"the {status} order that cost me the {word} in total", f"my {adjective} {status} order"))
                found.append(Said(words=words, reads=everything, choices=(choice,), depends=others))
    # The more there is to read, the fewer orders allow it: each way has the same chance.
    return rng.choice(found)


def clear_items(order: Mapping[str, Any]) -> list[Any]:
    """The items of an order that the name of their product tells apart."""
    names = Counter(item["name"] for item in order["items"])
    return [item for item in order["items"] if names[item["name"]] == 1]


def available(rows: Rows, item: Mapping[str, Any]) -> dict[str, Any]:
    """Item id -> variant in stock of the item's product."""
    variants = rows["products"][item["product_id"]]["variants"]
    return {id: variant for id, variant in variants.items() if variant["available"]}


def by_price(rows: Rows, item: Mapping[str, Any], by: str, fixed: Mapping[str, str] | None = None) -> Choice | None:
    """The cheapest or dearest variant in stock with these options, if it is another one than the item and no other comes near."""
    wanted = (fixed or {}).items()
    prices = {id: float(v["price"]) for id, v in available(rows, item).items() if wanted <= v["options"].items()}
    choice = choose("new item", f"{by} price", prices)
    return None if choice is None or choice.chosen == item["item_id"] else choice


def describe_variant(rows: Rows, item: Mapping[str, Any], rng: random.Random) -> tuple[str, Said] | None:
    """(new item id, words that follow "exchange it for") of a variant in stock other than the item."""
    product = read("get_product_details", product_id=item["product_id"])
    one = "a pair" if item["name"].endswith("s") else "one"
    found: list[tuple[str, Said]] = []
    for id, variant in available(rows, item).items():
        changed = {key: value for key, value in variant["options"].items() if item["options"].get(key) != value}
        if 1 <= len(changed) <= 2:
            words = _same_but(one, changed, len(variant["options"]))
            found.append((id, Said(words=words, reads=frozenset({product}))))
    found = [rng.choice(found)] if found else []
    for by, word in (("lowest", "cheapest"), ("highest", "most expensive")):
        keys = sorted(item["options"].keys() - NOT_NOUNS)
        key = rng.choice(keys) if keys else ""
        ways = [(None, ""), *([({key: item["options"][key]}, f" with the same {NOUNS.get(key, key)}")] if key else [])]
        for fixed, tail in ways:
            if choice := by_price(rows, item, by, fixed):
                words = f"the {word} {one.removeprefix('a ')} you have in stock{tail}"
                found.append((choice.chosen, Said(words=words, reads=frozenset({product}), choices=(choice,))))
    return rng.choice(found) if found else None


def _same_but(one: str, changed: Mapping[str, str], options: int) -> str:
    return f"{one} {options_words(changed)}" + (", everything else the same" if options > len(changed) else "")


def greatest_saving(rows: Rows, orders: Sequence[str]) -> tuple[str, Any, Choice, Choice] | None:
    """(order, item, choice of the item, choice of the new item): the one swap to the cheapest variant in stock that saves most.

    None when it is not unique by a margin, or when an item among the candidates has no clear cheapest variant.
    """
    savings: dict[str, float] = {}
    places: dict[str, tuple[str, Any]] = {}
    for order_id in orders:
        for item in rows["orders"][order_id]["items"]:
            prices = [float(variant["price"]) for variant in available(rows, item).values()]
            key = f"{order_id}/{item['item_id']}"
            if key in savings:
                return None  # the same item twice in an order
            savings[key] = round(float(item["price"]) - min(prices), 2) if prices else 0.0
            places[key] = (order_id, item)
    choice = choose("item", "highest saving", savings)
    if choice is None or savings[choice.chosen] <= 0:
        return None
    order_id, item = places[choice.chosen]
    new = by_price(rows, item, "lowest")
    return (order_id, item, choice, new) if new and len(savings) > 1 else None
