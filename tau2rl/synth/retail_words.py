"""Retail in a customer's words: products, options, orders, payment methods, addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEEPS_CAPITALS = ("LED", "E-Reader", "T-Shirt")
OF = {"size", "capacity", "battery life", "resolution", "screen size", "storage", "pressure", "length", "height", "diameter"}


def product_words(name: str) -> str:
    """A product in running text.

    >>> product_words("Water Bottle"), product_words("LED Light Bulb"), product_words("T-Shirt")
    ('water bottle', 'LED light bulb', 'T-shirt')
    """
    words = [word if word in KEEPS_CAPITALS else word.lower() for word in name.split()]
    return " ".join(words).replace("T-Shirt", "T-shirt").replace("E-Reader", "e-reader")


def option_words(key: str, value: str) -> str:
    """One option of a variant, as what follows "the one".

    >>> option_words("color", "blue"), option_words("waterproof", "no"), option_words("size", "L")
    ('in blue', 'that is not waterproof', 'in size L')
    """
    match key:
        case "color":
            return f"in {value}"
        case "size":
            return f"in size {value}"
        case "material":
            return f"made of {value}"
        case "waterproof":
            return "that is waterproof" if value == "yes" else "that is not waterproof"
        case "water resistance" if value in ("yes", "no"):
            return "that is water resistant" if value == "yes" else "that is not water resistant"
        case "features" | "connectivity" | "backlight" | "armrest" if value == "none":
            return f"with no {key}"
        case "features" | "piece count" | "pieces" | "bagged/bagless" | "set type":
            return f"with the option {value}"
        case _:
            article = "an" if key[0].lower() in "aeiou" else "a"
            return f"with {article} {key} of {value}"


def payment_words(method: Mapping[str, Any], methods: Mapping[str, Any]) -> str | None:
    """A payment method as its owner would name it; None where that would not be clear.

    >>> card = {"id": "c", "source": "credit_card", "brand": "visa", "last_four": "1234"}
    >>> payment_words(card, {"c": card})
    'my Visa card ending in 1234'
    """
    same = [other for other in methods.values() if other["source"] == method["source"]]
    if method["source"] == "credit_card":
        twins = [other for other in same if other["last_four"] == method["last_four"]]
        return f"my {str(method['brand']).capitalize()} card ending in {method['last_four']}" if len(twins) == 1 else None
    if len(same) > 1:
        return None
    return "my gift card" if method["source"] == "gift_card" else "my PayPal account"


def address_words(address: Mapping[str, str]) -> str:
    """An address on one line."""
    return "{address1}, {address2}, {city}, {state} {zip}, {country}".format(**address)
