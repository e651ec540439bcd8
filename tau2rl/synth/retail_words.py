"""Retail in a customer's words: products, options, orders, payment methods, addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tau2rl.synth.request import joined, payment_in_words
from tau2rl.synth.rules import Rows
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


def in_words(rows: Rows, user_id: str, call: CallTool) -> str:
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


def _product(rows: Rows, order_id: str, item_id: str) -> str:
    return product_words(next(item["name"] for item in rows["orders"][order_id]["items"] if item["item_id"] == item_id))


def _variant(rows: Rows, item_id: str) -> str:
    variant = next(product["variants"][item_id] for product in rows["products"].values() if item_id in product["variants"])
    options = ", ".join(f"{key} {value}" for key, value in variant["options"].items())
    return f"item {item_id} ({options})"
