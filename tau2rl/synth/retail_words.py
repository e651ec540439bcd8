"""Retail in words: which order and variant, and what has to be read to find out; options, addresses, what a call does."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tau2rl.synth.request import Manners, Read, Said, SelectorChoice, clear_choice, joined, payment_in_words, read, user_read
from tau2rl.synth.rules import Tables
from tau2rl.types import CallTool

KEEPS_CAPITALS = ("LED", "Bluetooth", "E-Reader", "T-Shirt")
# An option of a variant -> how it follows "the one" or "one"; `{}` is its value, `{a}` its value with an article.
OPTIONS = {
    "RAM": "with {} of RAM", "ram": "with {} of RAM", "armrest": "with {} armrests", "backlight": "with {a} backlight",
    "backrest height": "with the {} backrest", "bagged/bagless": "that is {}", "band material": "with {a} band",
    "battery life": "with {} of battery life", "battery type": "with {} power", "brand": "from {}",
    "brightness": "with {} brightness", "capacity": "with a capacity of {}", "color": "in {}",
    "color temperature": "with {} light", "compartment": "with {a} compartment", "compatibility": "that works with {}",
    "connectivity": "with {}", "cover type": "with {a}", "deck material": "with {a} deck", "design": "with {a} design",
    "dial color": "with {a} dial", "diameter": "with a diameter of {}", "difficulty level": "at {} level",
    "display": "with an {} display", "features": "with the {} feature", "field of view": "with a field of view of {}",
    "filter type": "with the {} filter", "frame color": "with {a} frame", "frame material": "with {a} frame",
    "frame size": "with {a} frame", "gender": "for {}", "height": "that is {} tall", "kit size": "in the {} kit size",
    "length": "that is {} long", "lens color": "with {} lenses", "lens type": "with {} lenses", "material": "made of {}",
    "output": "with {} output", "pieces": "with {} pieces",
    "power source": "that runs on {}", "pressure": "with {} of pressure", "processor": "with an {} processor",
    "resolution": "with {} resolution", "room size": "for {} rooms", "scent family": "with {a} scent",
    "screen size": "with {a} screen", "sensor type": "with {a} sensor", "set type": "as {a} set",
    "size": "in size {}", "skin tone": "for {} skin", "sole": "with {a} sole", "speed settings": "with {} speed settings",
    "storage": "with {} storage", "stovetop compatibility": "for {} stovetops", "strap material": "with {a} strap",
    "style": "in the {} style", "switch type": "with {} switches", "theme": "with the {} theme", "thickness": "that is {} thick",
    "tilt mechanism": "with {}", "type": "of the {} type", "ventilation": "with {} ventilation",
    "water resistance": "with {} water resistance", "weight range": "in the {} range", "zipper": "with {a} zipper",
    "zoom": "with {} zoom",
}  # fmt: skip
WHOLE = {  # values that need words of their own
    ("armrest", "none"): "without armrests", ("backlight", "none"): "without a backlight",
    ("battery type", "rechargeable"): "with a rechargeable battery",
    ("battery type", "AA batteries"): "that runs on AA batteries",
    ("compatibility", "none"): "without smart home support", ("connectivity", "Wi-Fi + Cellular"): "with Wi-Fi and cellular",
    ("connectivity", "none"): "without any connectivity", ("connectivity", "wired"): "that is wired",
    ("connectivity", "wireless"): "that is wireless", ("features", "none"): "without extra features",
    ("features", "cordless"): "that is cordless", ("features", "waterproof"): "that is waterproof",
    ("features", "foldable"): "that is foldable", ("gender", "unisex"): "that is unisex",
    ("piece count", "2-piece"): "with 2 pieces", ("piece count", "3-piece"): "with 3 pieces",
    ("piece count", "4-piece"): "with 4 pieces",
    ("power source", "AC adapter"): "that runs on an AC adapter", ("power source", "battery"): "that runs on batteries",
    ("sole", "EVA"): "with an EVA sole", ("water resistance", "no"): "that is not water resistant",
    ("water resistance", "not resistant"): "that is not water resistant", ("water resistance", "yes"): "that is water resistant",
    ("waterproof", "no"): "that is not waterproof", ("waterproof", "yes"): "that is waterproof",
}  # fmt: skip
MANNERS = Manners(
    identify=(
        (
            "I'd be happy to help with that. To find your account, could you tell me your email address, "
            "or your full name and zip code?"
        ),
        "Certainly. May I have your email address first, or your first and last name with your zip code?",
        "I can help you with that. Which email address is on your account, or what are your full name and zip code?",
    ),
    identify_again="Thank you, I have noted that. And what is your email address, or your full name and zip code?",
    cautions=dict.fromkeys(
        ("modify_pending_order_items", "exchange_delivered_order_items"),
        "Only one such change of an order is possible, so please make sure that nothing is missing. ",
    ),
)


def product_words(name: str) -> str:
    """A product in running text.

    >>> product_words("Water Bottle"), product_words("LED Light Bulb"), product_words("T-Shirt")
    ('water bottle', 'LED light bulb', 'T-shirt')
    """
    words = [word if word in KEEPS_CAPITALS else word.lower() for word in name.split()]
    return " ".join(words).replace("T-Shirt", "T-shirt").replace("E-Reader", "e-reader")


def option_words(key: str, value: str) -> str:
    """One option of a variant, as what follows "the one".

    >>> option_words("color", "blue"), option_words("waterproof", "no"), option_words("sensor type", "optical")
    ('in blue', 'that is not waterproof', 'with an optical sensor')
    >>> option_words("connectivity", "Wi-Fi + Cellular"), option_words("flavor", "mint")
    ('with Wi-Fi and cellular', 'with a flavor of mint')
    """
    if (key, value) in WHOLE:
        return WHOLE[key, value]
    if key == "size" and re.search("[a-z]", value):
        return f"in the {value} size"
    form = OPTIONS.get(key, f"with {_with_article(key)} of {{}}")
    return form.format(value, a=_with_article(value))


def options_words(options: Mapping[str, str]) -> str:
    """One or two options of a variant, in the order in which they are said: where and which, what of, what with, what it is.

    >>> options_words({"waterproof": "no", "color": "white"}), options_words({"color": "red", "size": "L"})
    ('in white that is not waterproof', 'in red and in size L')
    >>> options_words({"features": "HEPA filter", "bagged/bagless": "bagless"}), options_words({"backlight": "RGB"})
    ('that is bagless, with the HEPA filter feature', 'with an RGB backlight')
    """
    said = [option_words(key, value) for key, value in options.items()]
    kinds = ("in ", "made of ", "that ")  # all others come last
    said.sort(key=lambda words: next((place for place, kind in enumerate(kinds) if words.startswith(kind)), len(kinds)))
    if len(said) == 1:
        return said[0]
    first, second = (words.split()[0] for words in said)
    return (" and " if first == second else " " if first == "in" and second in ("with", "that") else ", ").join(said)


def _with_article(words: str) -> str:
    return f"{'an' if words[0].lower() in 'aeiou' or words.startswith(('RGB', '8', '11')) else 'a'} {words}"


def address_words(address: Mapping[str, str]) -> str:
    """An address on one line."""
    return "{address1}, {address2}, {city}, {state} {zip}, {country}".format(**address)


def retail_call_words(rows: Tables, user_id: str, call: CallTool) -> str:
    """What a call does, as the agent says it: "cancel order #W123 (no longer needed)"."""
    given: dict[str, Any] = dict(call.arguments)
    order = f"order {given.get('order_id')}"
    match call.name:
        case "cancel_pending_order":
            return f"cancel {order} ({given['reason']}), and the refund goes back to the way it was paid"
        case "modify_pending_order_payment":
            return f"change the payment of {order} to {payment_in_words(rows, user_id, given['payment_method_id'])}"
        case "modify_pending_order_address":
            return f"change the shipping address of {order} to {address_words(given)}"
        case "modify_user_address":
            return f"change the default address of your profile to {address_words(given)}"
        case "return_delivered_order_items":
            names = joined([f"the {_product(rows, given['order_id'], id)}" for id in given["item_ids"]])
            return f"return {names} of {order}, with the refund to {payment_in_words(rows, user_id, given['payment_method_id'])}"
        case _:
            pairs = zip(given["item_ids"], given["new_item_ids"], strict=True)
            swaps = [f"the {_product(rows, given['order_id'], old)} for {_variant(rows, new)}" for old, new in pairs]
            payment = payment_in_words(rows, user_id, given["payment_method_id"])
            return f"exchange, in {order}, {joined(swaps)}, and settle the price difference with {payment}"


def _product(rows: Tables, order_id: str, item_id: str) -> str:
    return product_words(next(item["name"] for item in rows["orders"][order_id]["items"] if item["item_id"] == item_id))


def _variant(rows: Tables, item_id: str) -> str:
    variant = next(product["variants"][item_id] for product in rows["products"].values() if item_id in product["variants"])
    options = ", ".join(f"{key} {value}" for key, value in variant["options"].items())
    return f"item {item_id} ({options})"


NOT_NOUNS = {"waterproof", "bagged/bagless", "water resistance", "gender", "skin tone"}  # that "with the same ..." cannot name
NOUNS = {"pieces": "number of pieces", "piece count": "number of pieces", "ram": "RAM"}  # what it calls others


def order_read(order_id: str) -> Read:
    """One order."""
    return read("get_order_details", order_id=order_id)


def total(order: Mapping[str, Any]) -> float:
    """What was paid for an order, in dollars."""
    return float(order["payment_history"][0]["amount"])


def describe_order(rows: Tables, user_id: str, order_id: str, rng: random.Random, but: Collection[str] = ()) -> Said:
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
            choice = clear_choice("order", by, same)
            if len(same) > 1 and choice and choice.chosen == order_id:
                words = rng.choice((f"the {status} order that cost me the {word} in total", f"my {adjective} {status} order"))
                found.append(Said(words=words, reads=everything, choices=(choice,), depends=others))
    # The more there is to read, the fewer orders allow it: each way has the same chance.
    return rng.choice(found)


def clear_items(order: Mapping[str, Any]) -> list[Any]:
    """The items of an order that the name of their product tells apart."""
    names = Counter(item["name"] for item in order["items"])
    return [item for item in order["items"] if names[item["name"]] == 1]


def available(rows: Tables, item: Mapping[str, Any]) -> dict[str, Any]:
    """Item id -> variant in stock of the item's product."""
    variants = rows["products"][item["product_id"]]["variants"]
    return {id: variant for id, variant in variants.items() if variant["available"]}


def by_price(rows: Tables, item: Mapping[str, Any], by: str, fixed: Mapping[str, str] | None = None) -> SelectorChoice | None:
    """The cheapest or dearest variant in stock with these options, if it is another one than the item and no other comes near."""
    wanted = (fixed or {}).items()
    prices = {id: float(v["price"]) for id, v in available(rows, item).items() if wanted <= v["options"].items()}
    choice = clear_choice("new item", f"{by} price", prices)
    return None if choice is None or choice.chosen == item["item_id"] else choice


def describe_variant(rows: Tables, item: Mapping[str, Any], rng: random.Random) -> tuple[str, Said] | None:
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


def greatest_saving(rows: Tables, orders: Sequence[str]) -> tuple[str, Any, SelectorChoice, SelectorChoice] | None:
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
    choice = clear_choice("item", "highest saving", savings)
    if choice is None or savings[choice.chosen] <= 0:
        return None
    order_id, item = places[choice.chosen]
    new = by_price(rows, item, "lowest")
    return (order_id, item, choice, new) if new and len(savings) > 1 else None


def money(amount: float) -> str:
    """An amount as the agent would say it, without a currency.

    >>> money(1234.5)
    '1234.50'
    """
    return f"{amount:.2f}"
