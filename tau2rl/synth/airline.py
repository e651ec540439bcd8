"""Airline's affordances: what a user could ask for, drawn from the database; the rules decide whether it is legal."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tau2rl.synth.airline_checks import CABINS, CHECKS, change_price, extra_bags, flights_open, is_cancelled, named, price, status
from tau2rl.synth.airline_words import (
    CABIN_WORDS,
    FIRST_DAY,
    LAST_DAY,
    airline_call_words,
    days,
    describe_nonstop,
    describe_reservation,
    paid,
    passenger_words,
    reservation_read,
    routes,
    search_read,
)
from tau2rl.synth.request import (
    Affordances,
    AskedAmount,
    Identity,
    Manners,
    Read,
    Request,
    Said,
    Slip,
    count_words,
    joined,
    named_payments,
    read,
    row_values,
    user_read,
)
from tau2rl.synth.rules import Tables
from tau2rl.types import CallTool

REASONS = {  # what the policy makes of a reason -> how a user says it
    "change of plan": ("my plans have changed", "I no longer want to travel", "something came up at work"),
    "health": ("I have fallen ill and cannot fly", "my doctor told me not to fly"),
    "weather": ("a storm is forecast for the day of the trip", "the weather will be too bad to travel"),
}
TODAY = "2024-05-15"
AIRLINE = "the airline cancelled one of its flights"
MANNERS = Manners(
    identify=(
        "I'd be happy to help with that. Could you tell me your user id, please?",
        "Certainly. May I have your user id first?",
        "I can help you with that. What is your user id?",
    ),
    identify_again="Thank you, I have noted that. And what is your user id?",
    cautions={},
)
RequestMaker = Callable[[str, str, random.Random, Said], "Request | None"]


class Airline(Affordances):
    """Draws requests of one user."""

    table = "reservations"
    entity_pattern = r"\b[A-Z0-9]{6}\b"
    unordered = frozenset[str]()
    checks, task_checks = CHECKS, {}
    manners = MANNERS
    shared = "The flights are the same ones: it is the same airline."

    def __init__(self, rows: Tables) -> None:
        super().__init__(rows)
        self._routes = routes(rows)
        names = [user["name"] for user in rows["users"].values()]
        self._first = sorted({name["first_name"] for name in names})
        self._last = sorted({name["last_name"] for name in names})

    def users(self) -> list[str]:
        """The users who have reservations, in the order of their ids."""
        return sorted(id for id, user in self.rows["users"].items() if user["reservations"])

    def room(self, user_id: str) -> int:
        """The most writes: two a reservation, a booking and a certificate."""
        return 2 + 2 * len(self.rows["users"][user_id]["reservations"])

    def apart(self, left: Request, right: Request) -> bool:
        """A change of bags and one of flights are told apart by their order in the payments; a cancelled trip is not changed."""
        tools = {left.call.name, right.call.name}
        free = {"update_reservation_passengers", "send_certificate", "book_reservation"}
        return bool(tools & free) and "cancel_reservation" not in tools

    def fits(self, left: Request, right: Request) -> bool:
        """Nobody who says that they cannot fly books a flight for themselves."""
        tools, reasons = {left.call.name, right.call.name}, {left.told.get("reason"), right.told.get("reason")}
        return "book_reservation" not in tools or "health" not in reasons

    def looked_at(self, request: Request) -> list[Read]:
        """The reservation, and the status of its flights that may have departed or been cancelled; what a payment must cover."""
        id = request.call.arguments.get("reservation_id") or request.told.get("reservation_id")
        if id is None:
            return []
        reads = [reservation_read(id)]
        flights = self.rows["reservations"][id]["flights"]
        if request.call.name in ("cancel_reservation", "send_certificate"):
            reads += [read("get_flight_status", **flight) for flight in named(flights) if flight["date"] <= TODAY]
        if request.call.name == "update_reservation_flights" and not request.breaks:
            reads += self._priced(request.call)
        return reads

    def is_clear(self, user_id: str, value: str) -> bool:
        """At least four digits, so that no price of a seat has it, and no part of what else belongs to the user."""
        user = self.rows["users"][user_id]
        mine = [self.rows["reservations"][id] for id in user["reservations"]]
        others = row_values([user, *({**reservation, "payment_history": []} for reservation in mine)])
        payments = row_values([reservation["payment_history"] for reservation in mine])
        named = any(value in text for text in others) or any(value in text != value for text in payments)
        return len(value) >= 4 and value != "2024" and not named

    def identity(self, user_id: str, rng: random.Random) -> Identity:
        """By user id, as the policy has it."""
        name = self.rows["users"][user_id]["name"]
        whole = f"{name['first_name']} {name['last_name']}"
        say = f"My name is {whole} and my user id is {user_id}."
        return Identity(kind="user_id", say=say, facts=(whole, user_id), known=user_read(user_id), unknown=())

    def unknown(self, spoken: str) -> tuple[list[str], str]:
        """Reservation numbers that are not said, and payment ids."""
        numbers = re.search(f"reservation {self.entity_pattern}", spoken)
        return ["any reservation number" + (" other than those in the known info" if numbers else "")], "payment ids"

    def in_words(self, user_id: str, call: CallTool) -> str:
        """What a call does, as the agent says it."""
        return airline_call_words(self.rows, user_id, call)

    def draw(self, user_id: str, rng: random.Random) -> Request | None:
        """One request, legal or not; None where the draw came to nothing."""
        if rng.random() < 0.2:
            return self._book(user_id, rng, rng.randint(1, 3))
        id = rng.choice(self.rows["users"][user_id]["reservations"])
        makers: tuple[RequestMaker, ...] = (self._cancel, self._compensate)
        if self._upcoming(id):
            makers = (self._cancel, self._cabin, self._flights, self._bags, self._passenger)
        return rng.choice(makers)(user_id, id, rng, describe_reservation(self.rows, user_id, id, rng))

    def draw_refusal(self, user_id: str, rng: random.Random) -> Request | None:
        """One request that is against the policy, if it is; named by the reservation's id, so that nothing else is unclear."""
        mine = {id: self.rows["reservations"][id] for id in self.rows["users"][user_id]["reservations"]}
        # What is seldom possible or seldom forbidden is drawn more often.
        makers: tuple[RequestMaker, ...] = (self._compensate, self._fewer_bags, self._one_more, self._too_many)
        maker = rng.choice(makers + 3 * (self._cancel,) + 4 * (self._flights,))
        id = rng.choice(sorted(mine))
        if maker != self._compensate and not self._upcoming(id):
            return None
        made = maker(user_id, id, rng, Said(words=f"reservation {id}", reads=frozenset()))
        worth = sorted(id for id, reservation in mine.items() if paid(reservation) >= 1000)
        if made is None or not worth:
            return None
        asked = rng.choice(worth)
        value, reads = str(paid(mine[asked])), frozenset({reservation_read(asked)})
        return replace(made, question=AskedAmount(say=f"what I paid in total for reservation {asked}", value=value, reads=reads))

    def other_values(self, user_id: str, call: CallTool, argument: str) -> list[Any]:
        """Another reservation, user, payment, cabin, flight, passenger, number, place or kind."""
        user, value = self.rows["users"][user_id], call.arguments[argument]
        other = {
            "reservation_id": [*user["reservations"], *self.rows["reservations"]],
            "user_id": list(self.rows["users"]),
            "payment_id": [*user["payment_methods"], "gift_card_0000000"],
            "cabin": list(CABINS),
            "insurance": ["yes", "no"],
            "flight_type": ["one_way", "round_trip"],
            "origin": [origin for origin, _ in self._routes],
            "destination": [origin for origin, _ in self._routes],
        }
        if argument in other:
            return [next(each for each in other[argument] if each != value)]
        if isinstance(value, int):
            return [value + 1]
        last = {
            "flights": {"date": next(day for day in days(FIRST_DAY, LAST_DAY) if day != value[-1].get("date"))},
            "passengers": {"dob": "1900-01-01"},
            "payment_methods": {"amount": value[-1].get("amount", 0) + 1},
        }[argument]
        return [*([value[:-1]] if len(value) > 1 else []), [*value[:-1], {**value[-1], **last}]]

    def _cancel(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request:
        reservation = self.rows["reservations"][id]
        reason, words = rng.choice([(kind, word) for kind, words in REASONS.items() for word in words])
        if is_cancelled(self.rows, reservation):
            reason, words = "airline", AIRLINE
        whole = all("certificate" not in payment["payment_id"] for payment in reservation["payment_history"])
        question = AskedAmount(say=f"how much money I get back for {said.words}", value=str(paid(reservation)))
        question = replace(question, reads=frozenset({reservation_read(id)}))
        return self._about(
            id, said, "cancel_reservation", {}, f"cancel {said.words}, because {words}", words,
            told={"reason": reason}, question=question if whole else None,
        )  # fmt: skip

    def _cabin(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request | None:
        reservation = self.rows["reservations"][id]
        cabin = rng.choice([cabin for cabin in CABINS if cabin != reservation["cabin"]])
        flights = named(reservation["flights"])
        words = f"change the cabin of {said.words} to {CABIN_WORDS[cabin]}"
        return self._changed(user_id, id, rng, said, {"cabin": cabin, "flights": flights}, words, CABIN_WORDS[cabin])

    def _flights(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request | None:
        """One direction goes nonstop, on another flight, in the same cabin."""
        reservation = self.rows["reservations"][id]
        flights, there = named(reservation["flights"]), (reservation["origin"], reservation["destination"])
        turn = [self._route(flight)[1] for flight in flights].index(there[1]) + 1
        back = reservation["flight_type"] == "round_trip" and rng.random() < 0.5
        first, last = (flights[turn - 1]["date"], LAST_DAY) if back else (FIRST_DAY, LAST_DAY)
        returns = not back and turn < len(flights)
        if returns:
            last = flights[turn]["date"]
        span = days(first, last)[1 if back else 0 : -1 if returns else None]  # the two directions are on days of their own
        passengers, route = len(reservation["passengers"]), there[::-1] if back else there
        found = describe_nonstop(self.rows, route, span, reservation["cabin"], passengers, rng)
        if found is None or found[0] in flights:
            return None
        flight, new = found
        way = "" if reservation["flight_type"] == "one_way" else "return " if back else "outbound "
        words = f"change the {way}trip of {said.words} to {new.words}"
        arguments = {"cabin": reservation["cabin"], "flights": [*flights[:turn], flight] if back else [flight, *flights[turn:]]}
        return self._changed(user_id, id, rng, said, arguments, words, new.words, new)

    def _changed(
        self, user_id: str, id: str, rng: random.Random, said: Said, arguments: dict[str, Any], words: str, fact: str,
        new: Said | None = None,
    ) -> Request | None:  # fmt: skip
        """New flights or another cabin, with what it costs."""
        payment = self._payment(user_id, rng)
        if payment is None:
            return None
        new = new or Said(words="", reads=frozenset())
        given = {**arguments, "payment_id": payment[0]}
        call = CallTool(name="update_reservation_flights", arguments={"reservation_id": id, **given})
        if not flights_open(self.rows, user_id, call):
            return None
        cost = change_price(self.rows, call)
        question = AskedAmount(say=f"what the change of {said.words} comes to in total", value=str(abs(cost)))
        return self._about(
            id, said, call.name, given, f"{words}, and settle the difference with {payment[1]}", fact, payment[1],
            reads=new.reads | {reservation_read(id), user_read(user_id)}, choices=new.choices,
            question=replace(question, reads=frozenset(self._priced(call))),
        ) if cost else None  # fmt: skip

    def _bags(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request | None:
        reservation, payment, more = self.rows["reservations"][id], self._payment(user_id, rng), rng.randint(1, 4)
        total = reservation["total_baggages"] + more
        extra = extra_bags(self.rows, user_id, reservation["cabin"], len(reservation["passengers"]), total)
        if payment is None or extra == reservation["nonfree_baggages"]:
            return None  # without a price, the payment method would not matter
        bags, wrong = count_words(more, "more checked bag"), count_words(more + 1, "more checked bag")
        slip = Slip(wrong=wrong, right=bags, correction=f"Sorry, I miscounted. It has to be {bags}.")
        return self._about(
            id, said, "update_reservation_baggages",
            {"total_baggages": total, "nonfree_baggages": extra, "payment_id": payment[0]},
            f"add {bags} to {said.words} and pay with {payment[1]}", bags, payment[1],
            reads=frozenset({reservation_read(id), user_read(user_id)}), slip=slip,
        )  # fmt: skip

    def _fewer_bags(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request | None:
        reservation, payment = self.rows["reservations"][id], self._payment(user_id, rng)
        if payment is None or not reservation["total_baggages"]:
            return None
        total = reservation["total_baggages"] - 1
        extra = extra_bags(self.rows, user_id, reservation["cabin"], len(reservation["passengers"]), total)
        arguments = {"total_baggages": total, "nonfree_baggages": extra, "payment_id": payment[0]}
        words = "take one checked bag off"
        return self._about(id, said, "update_reservation_baggages", arguments, f"{words} {said.words}", words)

    def _passenger(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request | None:
        passengers = self.rows["reservations"][id]["passengers"]
        place, new = rng.randrange(len(passengers)), self._somebody(rng)
        names = [f"{passenger['first_name']} {passenger['last_name']}" for passenger in passengers]
        if names.count(names[place]) > 1:
            return None
        user = self.rows["users"][user_id]
        own = passengers[place] == {**user["name"], "dob": user["dob"]}
        old = "me" if own else f"the passenger {names[place]}"
        arguments = {"passengers": [*passengers[:place], new, *passengers[place + 1 :]]}
        fact, wrong = passenger_words(new), passenger_words({**new, "dob": f"{int(new['dob'][:4]) + 1}{new['dob'][4:]}"})
        slip = Slip(wrong=wrong, right=fact, correction=f"Sorry, I got that passenger wrong. It has to be {fact}.")
        reads = frozenset({reservation_read(id)} if len(passengers) > 1 else ())
        say = f"replace {old} in {said.words} with {fact}"
        facts = (f"replace {old}", fact)
        return self._about(id, said, "update_reservation_passengers", arguments, say, *facts, reads=reads, slip=slip)

    def _one_more(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request:
        passengers, new = self.rows["reservations"][id]["passengers"], self._somebody(rng)
        fact = passenger_words(new)
        say = f"add {fact} as one more passenger to {said.words}"
        return self._about(id, said, "update_reservation_passengers", {"passengers": [*passengers, new]}, say, fact)

    def _compensate(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request:
        amount = 100 * len(self.rows["reservations"][id]["passengers"])
        say = f"complain that the airline cancelled a flight of {said.words}, and get compensated for that"
        return Request(
            call=CallTool(name="send_certificate", arguments={"user_id": user_id, "amount": amount}),
            say=say,
            facts=(said.words,),
            reads=said.reads | {reservation_read(id)},
            entity=user_id,
            choices=said.choices,
            depends=said.depends,
            told={"reservation_id": id},
        )

    def _too_many(self, user_id: str, id: str, rng: random.Random, said: Said) -> Request | None:
        return self._book(user_id, rng, 6)

    def _book(self, user_id: str, rng: random.Random, count: int) -> Request | None:
        """A one-way nonstop flight for the user and others, named in the order in which they are booked."""
        route, cabin = rng.choice(self._routes), rng.choice(CABINS)
        found = describe_nonstop(
            self.rows, route, days(FIRST_DAY, LAST_DAY), cabin, count, rng, f" from {route[0]} to {route[1]}"
        )
        methods = named_payments(self.rows, user_id)
        if found is None or not methods:
            return None
        flight, new = found
        user = self.rows["users"][user_id]
        others = [self._somebody(rng) for _ in range(count - 1)]
        passengers = [{**user["name"], "dob": user["dob"]}, *others]
        bags, insured = rng.randint(0, 3 * count), rng.random() < 0.4
        extra = extra_bags(self.rows, user_id, cabin, count, bags)
        total = price(self.rows, flight, cabin) * count + 50 * extra + (30 * count if insured else 0)
        payment = rng.choice(sorted(methods))
        if user["payment_methods"][payment].get("amount", total) < total:
            return None
        who = joined(["myself", *map(passenger_words, others)])
        luggage = count_words(bags, "checked bag") if bags else "no checked bags"
        parts = (
            new.words, f"for {who}", luggage, f"{'with' if insured else 'without'} travel insurance", methods[payment],
        )  # fmt: skip
        arguments = {
            "user_id": user_id, "origin": route[0], "destination": route[1], "flight_type": "one_way", "cabin": cabin,
            "flights": [flight], "passengers": passengers,
            "payment_methods": [{"payment_id": payment, "amount": total}],
            "total_baggages": bags, "nonfree_baggages": extra, "insurance": "yes" if insured else "no",
        }  # fmt: skip
        return Request(
            call=CallTool(name="book_reservation", arguments=arguments),
            say=f"book {parts[0]}, one way, {parts[1]}, with {parts[2]} and {parts[3]}, and pay with {parts[4]}",
            facts=parts,
            reads=new.reads | {user_read(user_id), search_read(*route, flight["date"])},
            entity=user_id,
            choices=new.choices,
            question=AskedAmount(say="how much the new booking costs in total", value=str(total)),
        )

    def _about(self, id: str, said: Said, tool: str, arguments: dict[str, Any], say: str, *facts: str, **more: Any) -> Request:
        """A request about a reservation."""
        reads, choices = said.reads | more.pop("reads", frozenset[Read]()), (*said.choices, *more.pop("choices", ()))
        call = CallTool(name=tool, arguments={"reservation_id": id, **arguments})
        facts = (said.words, *facts)
        return Request(call=call, say=say, facts=facts, reads=reads, entity=id, choices=choices, depends=said.depends, **more)

    def _payment(self, user_id: str, rng: random.Random) -> tuple[str, str] | None:
        """(id, words) of what can pay for a change."""
        clear = [(id, words) for id, words in named_payments(self.rows, user_id).items() if "certificate" not in id]
        return rng.choice(clear) if clear else None

    def _somebody(self, rng: random.Random) -> dict[str, str]:
        dob = f"{rng.randint(1950, 2005)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        return {"first_name": rng.choice(self._first), "last_name": rng.choice(self._last), "dob": dob}

    def _route(self, flight: dict[str, str]) -> tuple[str, str]:
        row = self.rows["flights"][flight["flight_number"]]
        return row["origin"], row["destination"]

    def _priced(self, call: CallTool) -> list[Read]:
        """What shows the prices and seats of the flights that a change does not keep."""
        reservation, given = self.rows["reservations"][call.arguments["reservation_id"]], call.arguments
        kept = named(reservation["flights"]) if given["cabin"] == reservation["cabin"] else []
        return [search_read(*self._route(flight), flight["date"]) for flight in given["flights"] if flight not in kept]

    def _upcoming(self, id: str) -> bool:
        return all(status(self.rows, flight) == "available" for flight in self.rows["reservations"][id]["flights"])
