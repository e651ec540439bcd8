"""Retail's affordances: what a user could ask for, drawn from the database; the rules decide whether it is legal."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tau2rl.synth.request import (
    Affordances,
    AskedAmount,
    Identity,
    Read,
    Request,
    Said,
    Slip,
    joined,
    named_payments,
    read,
    user_read,
)
from tau2rl.synth.retail_checks import CHECKS, TASK_CHECKS, price_difference
from tau2rl.synth.retail_words import (
    MANNERS,
    address_words,
    clear_items,
    describe_order,
    describe_variant,
    greatest_saving,
    money,
    order_read,
    product_words,
    retail_call_words,
    total,
)
from tau2rl.synth.rules import Tables
from tau2rl.types import CallTool

REASONS = {
    "no longer needed": ("I no longer need it", "I don't need it anymore", "it's no longer needed"),
    "ordered by mistake": ("I ordered it by mistake", "it was ordered by mistake", "I placed it by mistake"),
}
OTHER_REASONS = ("I found it cheaper elsewhere", "the delivery takes too long", "I changed jobs and have to save money")
NUMBERS = {2: "two", 3: "three", 4: "four"}
STREETS = ("Maple Street", "Cedar Avenue", "Hillcrest Drive", "Willow Lane", "Sunset Boulevard", "Birch Road", "Lakeview Drive")


class Retail(Affordances):
    """Draws requests of one user."""

    table = "orders"
    entity_pattern = r"#W\d+"
    unordered = frozenset({"item_ids", "new_item_ids"})
    checks, task_checks = CHECKS, TASK_CHECKS
    manners = MANNERS
    shared = "The products are the same ones: it is the same shop."

    def __init__(self, rows: Tables) -> None:
        super().__init__(rows)
        self._places = sorted(
            {(u["address"]["city"], u["address"]["state"], u["address"]["zip"]) for u in rows["users"].values()}
        )

    def users(self) -> list[str]:
        """The users who have orders, in the order of their ids."""
        return sorted(id for id, user in self.rows["users"].items() if user["orders"])

    def room(self, user_id: str) -> int:
        """The most writes that a user's profile and orders could take."""
        status = Counter(self.rows["orders"][id]["status"] for id in self.rows["users"][user_id]["orders"])
        return 1 + 3 * status["pending"] + status["delivered"]

    def apart(self, left: Request, right: Request) -> bool:
        """No order is cancelled that is changed too."""
        return "cancel_pending_order" not in (left.call.name, right.call.name)

    def looked_at(self, request: Request) -> list[Read]:
        """The order that is changed or refused."""
        return [order_read(request.entity)] if request.entity in self.rows["orders"] else []

    def unknown(self, spoken: str) -> tuple[list[str], str]:
        """Order numbers that are not said, and item ids."""
        return ["any order number" + (" other than those in the known info" if "#W" in spoken else "")], "item ids"

    def is_clear(self, user_id: str, value: str) -> bool:
        """Whether an amount, found as a part of what is said, can only be this answer.

        It is no part of a price or balance that the agent may name, and does not end in a zero that people leave out.
        """
        orders = [self.rows["orders"][id] for id in self.rows["users"][user_id]["orders"]]
        products = {item["product_id"] for order in orders for item in order["items"]}
        amounts = [item["price"] for order in orders for item in order["items"]]
        amounts += [v["price"] for id in products for v in self.rows["products"][id]["variants"].values()]
        amounts += [m["balance"] for m in self.rows["users"][user_id]["payment_methods"].values() if "balance" in m]
        totals = [money(paid["amount"]) for order in orders for paid in order["payment_history"]]
        named = any(value in money(amount) for amount in amounts) or any(value in paid != value for paid in totals)
        return not named and not value.endswith("0") and float(value) >= 10

    def draw(self, user_id: str, rng: random.Random) -> Request | None:
        """One request of this user, legal or not; None where the draw came to nothing."""
        if rng.random() < 0.08:
            return self._saving(user_id, rng)
        order_id = rng.choice(self.rows["users"][user_id]["orders"])
        makers: Mapping[str, tuple[Callable[..., Request | None], ...]] = {
            "pending": (self._cancel, self._payment, self._address, self._items),
            "delivered": (self._return, self._items),
        }
        if rng.random() < 0.12:
            return self._user_address(user_id, rng)
        chosen = makers.get(self.rows["orders"][order_id]["status"])
        return rng.choice(chosen)(user_id, order_id, rng) if chosen else None

    def draw_refusal(self, user_id: str, rng: random.Random) -> Request | None:
        """One request that is against the policy, if it is; named by the order's id, so that nothing else is unclear."""
        order_id = rng.choice(self.rows["users"][user_id]["orders"])
        if rng.random() < 0.15:  # somebody else's order
            order_id = rng.choice(sorted(self.rows["orders"].keys() - set(self.rows["users"][user_id]["orders"])))
        order = self.rows["orders"][order_id]
        said = Said(words=f"order {order_id}", reads=frozenset())
        owner = order["user_id"]
        maker = rng.choice((self._cancel, self._address, self._return, self._items))
        if maker == self._cancel and order["status"] == "pending" and rng.random() < 0.7:
            reason = rng.choice(OTHER_REASONS)
            call = CallTool(name="cancel_pending_order", arguments={"order_id": order_id, "reason": reason})
            words = f"cancel order {order_id}, because {reason}"
            made = Request(call=call, say=words, facts=(order_id, reason), reads=frozenset(), entity=order_id)
        else:
            made = maker(owner, order_id, rng, said)
        mine = named_payments(self.rows, user_id).values()
        if made and "payment_method_id" in made.call.arguments and not any(words in made.facts for words in mine):
            return None  # nobody speaks of "my gift card" who has none
        # The answer is on the same order, which the agent may read out to its owner only.
        question = AskedAmount(
            say="what I paid for that order in total", value=money(total(order)), reads=frozenset({order_read(order_id)})
        )
        if made is None or owner != user_id:
            return made and replace(made, question=self._own_question(user_id, rng))
        return replace(made, question=question if len(order["items"]) > 1 else self._own_question(user_id, rng))

    def identity(self, user_id: str, rng: random.Random) -> Identity:
        """By email, or by name and zip code."""
        user = self.rows["users"][user_id]
        name, zip = user["name"], user["address"]["zip"]
        whole = f"{name['first_name']} {name['last_name']}"
        if rng.random() < 0.5:
            return Identity(
                kind="email",
                say=f"My name is {whole} and my email is {user['email']}.",
                facts=(whole, user["email"]),
                known=read("find_user_id_by_email", email=user["email"]),
                unknown=("your user id",),
            )
        return Identity(
            kind="name_zip",
            say=f"My name is {whole} and my zip code is {zip}.",
            facts=(whole, zip),
            known=read("find_user_id_by_name_zip", first_name=name["first_name"], last_name=name["last_name"], zip=zip),
            unknown=("your user id", "the email address of your account"),
        )

    def in_words(self, user_id: str, call: CallTool) -> str:
        """What a call does, as the agent says it."""
        return retail_call_words(self.rows, user_id, call)

    def other_values(self, user_id: str, call: CallTool, argument: str) -> list[Any]:
        """Another reason, order, user, payment method or item; anything else with a digit more."""
        user, value = self.rows["users"][user_id], call.arguments[argument]
        match argument:
            case "reason":
                return [next(reason for reason in reversed(REASONS) if reason != value)]
            case "order_id":
                return [next(id for id in [*user["orders"], *self.rows["orders"]] if id != value)]
            case "user_id":
                return [next(id for id in self.rows["users"] if id != value)]
            case "payment_method_id":
                return [next((id for id in user["payment_methods"] if id != value), "gift_card_0000000")]
            case "item_ids":
                items = self.rows["orders"][call.arguments["order_id"]]["items"]
                spare = next((item["item_id"] for item in items if item["item_id"] not in value), None)
                return [*([value[:-1]] if len(value) > 1 else []), [*value[:-1], spare or "0"]]
            case "new_item_ids":
                product = next(p for p in self.rows["products"].values() if value[-1] in p["variants"])
                others = [id for id, v in product["variants"].items() if v["available"] and id != value[-1]]
                return [[*value[:-1], next((id for id in others if id not in call.arguments["item_ids"]), "0")]]
            case _:
                return [f"{value}0"]

    def _own_question(self, user_id: str, rng: random.Random) -> AskedAmount | None:
        orders = [id for id in self.rows["users"][user_id]["orders"] if len(self.rows["orders"][id]["items"]) > 1]
        if not orders:
            return None
        order_id = rng.choice(orders)
        value = money(total(self.rows["orders"][order_id]))
        return AskedAmount(
            say=f"what I paid in total for my order {order_id}", value=value, reads=frozenset({order_read(order_id)})
        )

    def _cancel(self, user_id: str, order_id: str, rng: random.Random, said: Said | None = None) -> Request:
        said = said or describe_order(self.rows, user_id, order_id, rng)
        reason = rng.choice(sorted(REASONS))
        words, other = rng.choice(REASONS[reason]), rng.choice(REASONS[next(r for r in REASONS if r != reason)])
        value = money(total(self.rows["orders"][order_id]))
        return Request(
            call=CallTool(name="cancel_pending_order", arguments={"order_id": order_id, "reason": reason}),
            say=f"cancel {said.words}, because {words}",
            facts=(said.words, words),
            reads=said.reads,
            entity=order_id,
            choices=said.choices,
            depends=said.depends,
            slip=Slip(
                wrong=other,
                right=words,
                correction=f"Sorry, I gave you the wrong reason for the cancellation. The truth is that {words}.",
            ),
            question=AskedAmount(
                say="how much money I get back for the cancelled order", value=value, reads=frozenset({order_read(order_id)})
            ),
        )

    def _payment(self, user_id: str, order_id: str, rng: random.Random, said: Said | None = None) -> Request | None:
        said = said or describe_order(self.rows, user_id, order_id, rng)
        method = self._method(user_id, rng, but=self.rows["orders"][order_id]["payment_history"][0]["payment_method_id"])
        if method is None:
            return None
        return Request(
            call=CallTool(name="modify_pending_order_payment", arguments={"order_id": order_id, "payment_method_id": method[0]}),
            say=f"switch the payment for {said.words} to {method[1]}",
            facts=(said.words, method[1]),
            reads=said.reads | {user_read(user_id)},
            entity=order_id,
            choices=said.choices,
            depends=said.depends,
        )

    def _address(self, user_id: str, order_id: str, rng: random.Random, said: Said | None = None) -> Request | None:
        said = said or describe_order(self.rows, user_id, order_id, rng)
        home, now = self.rows["users"][user_id]["address"], self.rows["orders"][order_id]["address"]
        if rng.random() < 0.4 and home != now:
            new, words, reads = home, "the address on my profile", frozenset({user_read(user_id)})
            depends, slip = frozenset({user_id}), None
        else:
            new, reads, depends = self._new_address(rng), frozenset[Read](), frozenset[str]()
            words = address_words(new)
            wrong = {**new, "address1": f"{rng.randint(100, 999)} {new['address1'].split(' ', 1)[1]}"}
            correction = f"Sorry, I got that address wrong. The right one is {words}."
            slip = Slip(wrong=address_words(wrong), right=words, correction=correction) if wrong != new else None
        return Request(
            call=CallTool(name="modify_pending_order_address", arguments={"order_id": order_id, **new}),
            say=f"change the shipping address of {said.words} to {words}",
            facts=(said.words, words),
            reads=said.reads | reads,
            entity=order_id,
            choices=said.choices,
            depends=said.depends | depends,
            slip=slip,
        )

    def _user_address(self, user_id: str, rng: random.Random) -> Request:
        new = self._new_address(rng)
        return Request(
            call=CallTool(name="modify_user_address", arguments={"user_id": user_id, **new}),
            say=f"change the default address on my profile to {address_words(new)}",
            facts=(address_words(new),),
            reads=frozenset(),
            entity=user_id,
        )

    def _return(self, user_id: str, order_id: str, rng: random.Random, said: Said | None = None) -> Request | None:
        order = self.rows["orders"][order_id]
        items = clear_items(order)
        method = self._method(user_id, rng)
        if not items or method is None:
            return None
        chosen = sorted(rng.sample(items, rng.randint(1, min(3, len(items)))), key=order["items"].index)
        said = said or describe_order(self.rows, user_id, order_id, rng, but={item["name"] for item in chosen})
        names = joined([f"the {product_words(item['name'])}" for item in chosen])
        arguments = {"order_id": order_id, "item_ids": [i["item_id"] for i in chosen], "payment_method_id": method[0]}
        value = money(sum(item["price"] for item in chosen))
        question = AskedAmount(say="how much the refund for the return comes to in total", value=value)
        return Request(
            call=CallTool(name="return_delivered_order_items", arguments=arguments),
            say=f"return {names} from {said.words} and get the refund to {method[1]}",
            facts=(names, said.words, method[1]),
            reads=said.reads | {order_read(order_id), user_read(user_id)},
            entity=order_id,
            choices=said.choices,
            depends=said.depends,
            question=question,
        )

    def _items(self, user_id: str, order_id: str, rng: random.Random, said: Said | None = None) -> Request | None:
        """An exchange of a delivered order's items, or a change of one item of another's.

        tau2 gives every item that it modifies the price and options of the last one, so that their order would matter.
        """
        order = self.rows["orders"][order_id]
        delivered = order["status"] == "delivered"
        items, method = clear_items(order), self._method(user_id, rng)
        if not items or method is None:
            return None
        count = rng.randint(1, min(4, len(items))) if delivered else 1
        chosen = sorted(rng.sample(items, count), key=order["items"].index)
        said = said or describe_order(self.rows, user_id, order_id, rng, but={item["name"] for item in chosen})
        swaps = [describe_variant(self.rows, item, rng) for item in chosen]
        if any(swap is None for swap in swaps):
            return None
        news = [swap for swap in swaps if swap]
        names = [f"the {product_words(item['name'])}" for item in chosen]
        parts = [f"{name} for {new.words}" for name, (_, new) in zip(names, news, strict=True)]
        verb, preposition = ("exchange", "from") if delivered else ("swap", "in")
        if len(parts) == 1:
            what = f"{verb} {names[0]} {preposition} {said.words} for {news[0][1].words}"
            parts = [names[0], news[0][1].words]
        else:
            what = f"{verb} {NUMBERS[len(parts)]} items {preposition} {said.words}: {'; '.join(parts)}"
        return self._swap(
            user_id,
            order_id,
            {item["item_id"]: new for item, (new, _) in zip(chosen, news, strict=True)},
            method,
            say=f"{what}{',' if len(chosen) == 1 else ';'} and settle any price difference with {method[1]}",
            facts=(said.words, *parts, method[1]),
            reads=said.reads.union({order_read(order_id)}, *(new.reads for _, new in news)),
            choices=(*said.choices, *(choice for _, new in news for choice in new.choices)),
            depends=said.depends,
        )

    def _saving(self, user_id: str, rng: random.Random) -> Request | None:
        """The one item among all delivered, or all pending, orders where the cheapest version saves most."""
        status = rng.choice(("delivered", "pending"))
        orders = {id: self.rows["orders"][id] for id in self.rows["users"][user_id]["orders"]}
        same = [id for id, order in orders.items() if order["status"] == status]
        found, method = greatest_saving(self.rows, same), self._method(user_id, rng)
        if found is None or method is None:
            return None
        order_id, item, which, new = found
        where = "that has been delivered to me" if status == "delivered" else "in my pending orders"
        verb = "exchange" if status == "delivered" else "swap"
        say = (
            f"{verb} a single item, the one out of everything {where} where going to the cheapest version you have in stock "
            f"saves me the most money, and settle the price difference with {method[1]}"
        )
        products = {item["product_id"] for id in same for item in orders[id]["items"]}
        return self._swap(
            user_id,
            order_id,
            {item["item_id"]: new.chosen},
            method,
            say=say,
            facts=(where, "saves me the most money", method[1]),
            reads=frozenset({*map(order_read, orders), *(read("get_product_details", product_id=id) for id in products)}),
            choices=(which, new),
            depends=frozenset(orders) - {order_id},
        )

    def _swap(self, user_id: str, order_id: str, new: Mapping[str, str], method: tuple[str, str], **said: Any) -> Request:
        name = (
            "exchange_delivered_order_items"
            if self.rows["orders"][order_id]["status"] == "delivered"
            else "modify_pending_order_items"
        )
        arguments = {
            "order_id": order_id, "item_ids": list(new), "new_item_ids": list(new.values()), "payment_method_id": method[0],
        }  # fmt: skip
        call = CallTool(name=name, arguments=arguments)
        reads = said.pop("reads") | {user_read(user_id)}
        value = money(abs(price_difference(self.rows, call)))
        question = AskedAmount(say="how big the price difference is in total", value=value)
        return Request(call=call, entity=order_id, reads=reads, question=question, **said)

    def _method(self, user_id: str, rng: random.Random, but: str = "") -> tuple[str, str] | None:
        """(id, words) of a payment method that its owner can name."""
        clear = [(id, words) for id, words in named_payments(self.rows, user_id).items() if id != but]
        return rng.choice(clear) if clear else None

    def _new_address(self, rng: random.Random) -> dict[str, str]:
        city, state, zip = rng.choice(self._places)
        street = f"{rng.randint(100, 999)} {rng.choice(STREETS)}"
        flat = f"{rng.choice(('Apt', 'Suite'))} {rng.randint(100, 999)}"
        return {"address1": street, "address2": flat, "city": city, "state": state, "country": "USA", "zip": zip}
