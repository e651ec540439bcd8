"""What the rules in `retail_rules.yaml` check, on the rows of retail's database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tau2rl.synth.rules import RuleCheck, Tables, TaskCheck, own_profile
from tau2rl.types import CallTool

ONCE = ("modify_pending_order_items", "exchange_delivered_order_items", "return_delivered_order_items", "cancel_pending_order")


def own_order(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The order belongs to the user of the conversation."""
    return _order(rows, call)["user_id"] == user_id


def order_status(rows: Tables, user_id: str, call: CallTool, *, status: str) -> bool:
    """The order has exactly this status."""
    return _order(rows, call)["status"] == status


def argument_is_one_of(rows: Tables, user_id: str, call: CallTool, *, argument: str, values: Sequence[str]) -> bool:
    """The argument is one of these values."""
    return call.arguments[argument] in values


def payment_differs(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The new payment method is not the one that paid, and only one did."""
    paid = _order(rows, call)["payment_history"]
    return len(paid) == 1 and paid[0]["payment_method_id"] != call.arguments["payment_method_id"]


def gift_card_covers_total(rows: Tables, user_id: str, call: CallTool) -> bool:
    """A gift card has what the order costs."""
    return _covers(rows, call, _order(rows, call)["payment_history"][0]["amount"])


def gift_card_covers_difference(rows: Tables, user_id: str, call: CallTool) -> bool:
    """A gift card has what the new items cost more."""
    return _covers(rows, call, price_difference(rows, call))


def same_product(rows: Tables, user_id: str, call: CallTool) -> bool:
    """Every new item is a variant of the product of the item in its place, and another item than it."""
    pairs = zip(call.arguments["item_ids"], call.arguments["new_item_ids"], strict=True)
    return all(new != old and new in _variants(rows, call, old) for old, new in pairs)


def new_items_available(rows: Tables, user_id: str, call: CallTool) -> bool:
    """Every new item that exists for its product is in stock."""
    pairs = zip(call.arguments["item_ids"], call.arguments["new_item_ids"], strict=True)
    found = [_variants(rows, call, old).get(new) for old, new in pairs]
    return all(variant is None or variant["available"] for variant in found)


def refund_to_original_or_gift_card(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The refund goes to what paid the order, or to a gift card of the user."""
    order, method = _order(rows, call), call.arguments["payment_method_id"]
    known = rows["users"][order["user_id"]]["payment_methods"]
    return method in known and (
        known[method]["source"] == "gift_card" or method == order["payment_history"][0]["payment_method_id"]
    )


def once_per_order(calls: Sequence[CallTool]) -> bool:
    """No order is cancelled, returned, exchanged, or has its items modified more than once; and no tool twice on an order."""
    once = [call.arguments["order_id"] for call in calls if call.name in ONCE]
    each = [(call.name, call.arguments.get("order_id", "")) for call in calls]
    return len(set(once)) == len(once) and len(set(each)) == len(each)


def nothing_after_items(calls: Sequence[CallTool]) -> bool:
    """Whatever closes an order to further changes is the last call on it."""
    closed: set[str] = set()
    for call in calls:
        order = call.arguments.get("order_id")
        if order in closed:
            return False
        if order and call.name in ONCE:
            closed.add(order)
    return True


CHECKS: dict[str, RuleCheck] = {
    check.__name__: check
    for check in (
        own_order, own_profile, order_status, argument_is_one_of, payment_differs, gift_card_covers_total,
        gift_card_covers_difference, same_product, new_items_available, refund_to_original_or_gift_card,
    )
}  # fmt: skip
TASK_CHECKS: dict[str, TaskCheck] = {check.__name__: check for check in (once_per_order, nothing_after_items)}


def price_difference(rows: Tables, call: CallTool) -> float:
    """What the new items cost more than the old ones, in dollars."""
    prices = {item["item_id"]: item["price"] for item in _order(rows, call)["items"]}
    pairs = zip(call.arguments["item_ids"], call.arguments["new_item_ids"], strict=True)
    found = [(prices[old], _variants(rows, call, old).get(new)) for old, new in pairs]
    return round(sum(variant["price"] - price for price, variant in found if variant), 2)


def _order(rows: Tables, call: CallTool) -> Any:
    return rows["orders"][call.arguments["order_id"]]


def _variants(rows: Tables, call: CallTool, item_id: str) -> Any:
    product = next(item["product_id"] for item in _order(rows, call)["items"] if item["item_id"] == item_id)
    return rows["products"][product]["variants"]


def _covers(rows: Tables, call: CallTool, amount: float) -> bool:
    method = rows["users"][_order(rows, call)["user_id"]]["payment_methods"].get(call.arguments["payment_method_id"])
    return method is not None and (method["source"] != "gift_card" or method["balance"] >= amount)
