"""How an airline user says which reservation and which flight, what has to be read to find out, and what a call does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from tau2rl.synth.airline_checks import CABINS, price, seats
from tau2rl.synth.request import Read, Said, clear_choice, count_words, joined, payment_in_words, read, user_read
from tau2rl.synth.rules import Tables
from tau2rl.types import CallTool

CABIN_WORDS = {cabin: cabin.replace("_", " ") for cabin in CABINS}
WINDOWS = (1, 1, 1, 2, 3, 4, 6, 8, 10)  # days that the cheapest flight is looked for in
FIRST_DAY, LAST_DAY = "2024-05-16", "2024-05-30"  # of flights that can still be booked


def reservation_read(reservation_id: str) -> Read:
    """One reservation."""
    return read("get_reservation_details", reservation_id=reservation_id)


def search_read(origin: str, destination: str, date: str) -> Read:
    """The nonstop flights of a day."""
    return read("search_direct_flight", origin=origin, destination=destination, date=date)


def paid(reservation: Mapping[str, Any]) -> int:
    """What was paid for a reservation, in dollars."""
    return sum(payment["amount"] for payment in reservation["payment_history"])


def describe_reservation(rows: Tables, user_id: str, reservation_id: str, rng: random.Random) -> Said:
    """One of the ways to say which reservation is meant, each true of this one alone; by its id where nothing else is."""
    mine = {id: rows["reservations"][id] for id in rows["users"][user_id]["reservations"]}
    this = mine[reservation_id]
    found = [Said(words=f"reservation {reservation_id}", reads=frozenset())]
    others = frozenset(mine) - {reservation_id} | {user_id}  # a new booking would be one more to compare
    routes = Counter((other["origin"], other["destination"]) for other in mine.values())
    if routes[this["origin"], this["destination"]] == 1 and this["origin"] != this["destination"]:
        words = f"my reservation from {this['origin']} to {this['destination']}"
        certificate = frozenset({user_read(user_id), reservation_read(reservation_id)})
        found.append(Said(words=words, reads=certificate, depends=frozenset({user_id})))
    everything = frozenset({user_read(user_id), *map(reservation_read, mine)})
    # A change of its own cabin or price must not come before either.
    if Counter(other["cabin"] for other in mine.values())[this["cabin"]] == 1:
        words = f"my only {CABIN_WORDS[this['cabin']]} reservation"
        found.append(Said(words=words, reads=everything, depends=others))
    made = {id: datetime.fromisoformat(other["created_at"]).timestamp() / 60 for id, other in mine.items()}
    ways = (
        ("highest minute of booking", made, "the reservation that I booked last"),
        ("lowest minute of booking", made, "the reservation that I booked first"),
        ("highest total", {id: float(paid(other)) for id, other in mine.items()}, "the reservation that I paid the most for"),
        ("lowest total", {id: float(paid(other)) for id, other in mine.items()}, "the reservation that I paid the least for"),
    )
    for by, values, words in ways:
        choice = clear_choice("reservation", by, values)
        if len(mine) > 1 and choice and choice.chosen == reservation_id:
            found.append(Said(words=words, reads=everything, choices=(choice,), depends=others))
    return rng.choice(found)


def day_words(day: str) -> str:
    """A day of the data's one month.

    >>> day_words("2024-05-09")
    'May 9'
    """
    return f"May {date.fromisoformat(day).day}"


def days(first: str, last: str) -> list[str]:
    """Every day from the first to the last, both included.

    >>> days("2024-05-30", "2024-05-31")
    ['2024-05-30', '2024-05-31']
    """
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    return [(start + timedelta(days=n)).isoformat() for n in range((end - start).days + 1)]


def routes(rows: Tables) -> list[tuple[str, str]]:
    """(origin, destination) of every nonstop flight."""
    return sorted({(flight["origin"], flight["destination"]) for flight in rows["flights"].values()})


def describe_nonstop(
    rows: Tables, route: tuple[str, str], span: Sequence[str], cabin: str, passengers: int, rng: random.Random, between: str = ""
) -> tuple[dict[str, str], Said] | None:
    """(flight number and date, its words) of a nonstop flight with enough seats on some day of `span`; `between`: its airports.

    "the cheapest nonstop flight on any day from May 17 to May 20"; None where the draw has no unique choice.
    """
    length = min(rng.choice(WINDOWS), len(span))
    if not length:
        return None
    start = rng.randrange(len(span) - length + 1)
    window = span[start : start + length]
    open: dict[str, dict[str, str]] = {}
    for number, flight in rows["flights"].items():
        for day in window if (flight["origin"], flight["destination"]) == route else ():
            named = {"flight_number": number, "date": day}
            if seats(rows, named, cabin) >= passengers:
                open[f"{number}/{day}"] = named
    if not open:
        return None
    reads = frozenset(search_read(*route, day) for day in window)
    when = f"on {day_words(window[0])}"
    prices = {key: float(price(rows, flight, cabin)) for key, flight in open.items()}
    ways = [("lowest price", prices, "cheapest")]
    if length == 1:
        flights = {key: rows["flights"][flight["flight_number"]] for key, flight in open.items()}
        leaves = {key: float(minutes(flight["scheduled_departure_time_est"])) for key, flight in flights.items()}
        takes = {key: minutes(flight["scheduled_arrival_time_est"]) - leaves[key] for key, flight in flights.items()}
        ways += [
            ("lowest departure", leaves, "earliest"),
            ("highest departure", leaves, "latest"),
            ("lowest duration", takes, "shortest"),
        ]
        named = rng.choice(list(open.values()))
        if rng.random() < 0.25:
            return named, Said(
                words=f"flight {named['flight_number']}{between} {when} in {CABIN_WORDS[cabin]}", reads=frozenset()
            )
    else:
        when = f"on any day from {day_words(window[0])} to {day_words(window[-1])}"
    by, values, word = rng.choice(ways)
    choice = clear_choice("flight", by, values)
    if choice is None:
        return None
    enough = f"at least {passengers} seats left" if passengers > 1 else "a seat left"
    words = f"the {word} nonstop flight{between} {when} that has {enough} in {CABIN_WORDS[cabin]}"
    return open[choice.chosen], Said(words=words, reads=reads, choices=(choice,))


def minutes(time: str) -> int:
    """A time of the day in minutes; "+1" is the day after.

    >>> minutes("06:30:00"), minutes("01:00:00+1")
    (390, 1500)
    """
    clock, _, later = time.partition("+")
    hour, minute, _ = clock.split(":")
    return int(later or 0) * 24 * 60 + int(hour) * 60 + int(minute)


def passenger_words(passenger: Mapping[str, str]) -> str:
    """A passenger with all that a booking needs.

    >>> passenger_words({"first_name": "Raj", "last_name": "Smith", "dob": "1967-04-01"})
    'Raj Smith (born 1967-04-01)'
    """
    return f"{passenger['first_name']} {passenger['last_name']} (born {passenger['dob']})"


def airline_call_words(rows: Tables, user_id: str, call: CallTool) -> str:
    """What a call does, as the agent says it: "cancel reservation 4WQ150"."""
    given: dict[str, Any] = dict(call.arguments)
    id = f"reservation {given.get('reservation_id')}"
    flights = joined([f"{f['flight_number']} on {day_words(f['date'])}" for f in given.get("flights", ())])
    passengers = joined([passenger_words(passenger) for passenger in given.get("passengers", ())])
    payment = payment_in_words(rows, user_id, given["payment_id"]) if "payment_id" in given else ""
    match call.name:
        case "cancel_reservation":
            return f"cancel {id}, and the refund goes to the original payment methods within 5 to 7 business days"
        case "update_reservation_flights":
            cabin = CABIN_WORDS[given["cabin"]]
            return f"set the flights of {id} to {flights} in {cabin}, and settle the difference with {payment}"
        case "update_reservation_baggages":
            bags = count_words(given["total_baggages"], "checked bag")
            return f"set {id} to {bags} in total, {given['nonfree_baggages']} of them paid, with {payment}"
        case "update_reservation_passengers":
            return f"set the passengers of {id} to {passengers}"
        case "send_certificate":
            return f"send you a certificate of ${given['amount']}"
        case _:
            paid = [f"${p['amount']} with {payment_in_words(rows, user_id, p['payment_id'])}" for p in given["payment_methods"]]
            bags = f"{count_words(given['total_baggages'], 'checked bag')} ({given['nonfree_baggages']} of them paid)"
            cabin, insured = CABIN_WORDS[given["cabin"]], "with" if given["insurance"] == "yes" else "without"
            trip = f"a trip from {given['origin']} to {given['destination']} on {flights} in {cabin}"
            return f"book {trip} for {passengers}, with {bags} and {insured} travel insurance, and charge {joined(paid)}"
