"""Airline's rows in words: passengers, flights, and what a call does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tau2rl.synth.airline_selectors import CABIN_WORDS, day_words
from tau2rl.synth.request import count_words, joined, payment_in_words
from tau2rl.synth.rules import Rows
from tau2rl.types import CallTool


def passenger_words(passenger: Mapping[str, str]) -> str:
    """A passenger with all that a booking needs.

    >>> passenger_words({"first_name": "Raj", "last_name": "Smith", "dob": "1967-04-01"})
    'Raj Smith (born 1967-04-01)'
    """
    return f"{passenger['first_name']} {passenger['last_name']} (born {passenger['dob']})"


def in_words(rows: Rows, user_id: str, call: CallTool) -> str:
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
