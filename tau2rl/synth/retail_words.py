"""Retail in a customer's words: products, options, orders, payment methods, addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "length": "with a length of {}", "lens color": "with {} lenses", "lens type": "with {} lenses", "material": "made of {}",
    "output": "with {} output", "piece count": "as a {} set", "pieces": "with {} pieces",
    "power source": "that runs on {}", "pressure": "with {} of pressure", "processor": "with an {} processor",
    "resolution": "with {} resolution", "room size": "for {} rooms", "scent family": "with {a} scent",
    "screen size": "with a screen size of {}", "sensor type": "with {a} sensor", "set type": "as {a} set",
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
    form = OPTIONS.get(key, f"with {_with_article(key)} of {{}}")
    return form.format(value, a=_with_article(value))


def _with_article(words: str) -> str:
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


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
    if len(same) > 1:
        return None
    return "my gift card" if method["source"] == "gift_card" else "my PayPal account"


def address_words(address: Mapping[str, str]) -> str:
    """An address on one line."""
    return "{address1}, {address2}, {city}, {state} {zip}, {country}".format(**address)
