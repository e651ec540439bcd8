"""What the rules in `airline_rules.yaml` check, on the rows of airline's database, and what it says of prices and bags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tau2rl.synth.rules import RuleCheck, Tables, own_profile
from tau2rl.types import CallTool

A_DAY_AGO = "2024-05-14T15:00:00"  # the policy's current time is 2024-05-15 15:00:00
FLOWN = ("landed", "flying")
COVERED = ("health", "weather")  # reasons of a cancellation that the travel insurance covers
CABINS = ("basic_economy", "economy", "business")
FREE_BAGS = {"regular": (0, 1, 2), "silver": (1, 2, 3), "gold": (2, 3, 4)}  # a passenger, by cabin


def own_reservation(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The reservation belongs to the user of the conversation."""
    return _reservation(rows, call)["user_id"] == user_id


def not_flown(rows: Tables, user_id: str, call: CallTool) -> bool:
    """No flight of the reservation has taken off."""
    return not any(status(rows, flight) in FLOWN for flight in _reservation(rows, call)["flights"])


def may_be_cancelled(rows: Tables, user_id: str, call: CallTool) -> bool:
    """Booked within a day, cancelled by the airline, business, or insured against the `reason` that the user told."""
    reservation = _reservation(rows, call)
    return (
        reservation["created_at"] >= A_DAY_AGO
        or is_cancelled(rows, reservation)
        or reservation["cabin"] == "business"
        or (reservation["insurance"] == "yes" and call.arguments["reason"] in COVERED)
    )


def may_change_flights(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The flights stay the same, or they are not in basic economy."""
    reservation = _reservation(rows, call)
    return reservation["cabin"] != "basic_economy" or call.arguments["flights"] == named(reservation["flights"])


def same_route(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The flights lead, in the order of their dates, to the destination, and back again in a round trip."""
    reservation, flights = _reservation(rows, call), call.arguments["flights"]
    return flights_connect(rows, flights, reservation["origin"], reservation["destination"], reservation["flight_type"])


def booked_route(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The same of a new reservation."""
    given = call.arguments
    return flights_connect(rows, given["flights"], given["origin"], given["destination"], given["flight_type"])


def flights_open(rows: Tables, user_id: str, call: CallTool) -> bool:
    """Every flight that is not kept in its cabin is available on its date, with a seat for each passenger."""
    given = call.arguments
    reservation = _reservation(rows, call) if "reservation_id" in given else None
    passengers = len((reservation or given)["passengers"])
    kept = named(reservation["flights"]) if reservation and reservation["cabin"] == given["cabin"] else []
    return all(seats(rows, flight, given["cabin"]) >= passengers for flight in given["flights"] if flight not in kept)


def change_can_be_paid(rows: Tables, user_id: str, call: CallTool) -> bool:
    """One gift card or credit card of the profile, and a gift card has what the change costs."""
    method = rows["users"][user_id]["payment_methods"].get(call.arguments["payment_id"])
    if method is None or method["source"] == "certificate":
        return False
    return method["source"] != "gift_card" or method["amount"] >= change_price(rows, call)


def no_fewer_bags(rows: Tables, user_id: str, call: CallTool) -> bool:
    """Bags are not removed."""
    return call.arguments["total_baggages"] >= _reservation(rows, call)["total_baggages"]


def extra_bags_counted(rows: Tables, user_id: str, call: CallTool) -> bool:
    """What goes beyond the free allowance, and only that, is paid."""
    given = call.arguments
    trip = _reservation(rows, call) if "reservation_id" in given else given
    extra = extra_bags(rows, user_id, trip["cabin"], len(trip["passengers"]), given["total_baggages"])
    return given["nonfree_baggages"] == extra


def same_number_of_passengers(rows: Tables, user_id: str, call: CallTool) -> bool:
    """As many passengers as before."""
    return len(call.arguments["passengers"]) == len(_reservation(rows, call)["passengers"])


def at_most_five_passengers(rows: Tables, user_id: str, call: CallTool) -> bool:
    """A reservation has one to five passengers."""
    return 1 <= len(call.arguments["passengers"]) <= 5


def payments_allowed(rows: Tables, user_id: str, call: CallTool) -> bool:
    """No more of any kind of payment method than a reservation can use."""
    methods = rows["users"][user_id]["payment_methods"]
    used = Counter(methods[paid["payment_id"]]["source"] for paid in call.arguments["payment_methods"])
    return used["certificate"] <= 1 and used["credit_card"] <= 1 and used["gift_card"] <= 3


def payments_in_profile(rows: Tables, user_id: str, call: CallTool) -> bool:
    """Every payment method is the user's, and has what it pays."""
    methods = rows["users"][user_id]["payment_methods"]
    paid = call.arguments["payment_methods"]
    return all(p["payment_id"] in methods and methods[p["payment_id"]].get("amount", p["amount"]) >= p["amount"] for p in paid)


def flight_was_cancelled(rows: Tables, user_id: str, call: CallTool) -> bool:
    """The reservation of which the user told has a cancelled flight, and the amount is $100 a passenger."""
    reservation = _reservation(rows, call)
    return is_cancelled(rows, reservation) and call.arguments["amount"] == 100 * len(reservation["passengers"])


def may_be_compensated(rows: Tables, user_id: str, call: CallTool) -> bool:
    """A silver or gold member, or the reservation of which the user told is insured or in business."""
    reservation, member = _reservation(rows, call), rows["users"][user_id]["membership"] in ("silver", "gold")
    return member or reservation["insurance"] == "yes" or reservation["cabin"] == "business"


CHECKS: dict[str, RuleCheck] = {
    check.__name__: check
    for check in (
        own_reservation, own_profile, not_flown, may_be_cancelled, may_change_flights, same_route, booked_route, flights_open,
        change_can_be_paid, no_fewer_bags, extra_bags_counted, same_number_of_passengers, at_most_five_passengers,
        payments_allowed, payments_in_profile, flight_was_cancelled, may_be_compensated,
    )
}  # fmt: skip


def named(flights: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A reservation's flights as a call names them."""
    return [{"flight_number": flight["flight_number"], "date": flight["date"]} for flight in flights]


def status(rows: Tables, flight: Mapping[str, Any]) -> str:
    """The status of a flight on its date: "available", "landed", ..."""
    return rows["flights"][flight["flight_number"]]["dates"][flight["date"]]["status"]


def is_cancelled(rows: Tables, reservation: Mapping[str, Any]) -> bool:
    """Whether the airline cancelled a flight of the reservation."""
    return any(status(rows, flight) == "cancelled" for flight in reservation["flights"])


def seats(rows: Tables, flight: Mapping[str, str], cabin: str) -> int:
    """How many seats can be booked; 0 where the flight is not available."""
    day = rows["flights"][flight["flight_number"]]["dates"].get(flight["date"], {})
    return day["available_seats"][cabin] if day.get("status") == "available" else 0


def price(rows: Tables, flight: Mapping[str, str], cabin: str) -> int:
    """What a seat of an available flight costs, in dollars."""
    return rows["flights"][flight["flight_number"]]["dates"][flight["date"]]["prices"][cabin]


def flights_connect(rows: Tables, flights: Sequence[Mapping[str, str]], origin: str, destination: str, kind: str) -> bool:
    """Whether the flights are a trip of this kind ("one_way" or "round_trip") between the two airports."""
    legs = [rows["flights"][flight["flight_number"]] for flight in flights]
    dates = [flight["date"] for flight in flights]
    stops = [origin, *(leg["destination"] for leg in legs)]
    joins = all(leg["origin"] == stop for leg, stop in zip(legs, stops, strict=False)) and dates == sorted(dates)
    if not legs or not joins or destination not in stops:
        return False
    return stops[-1] == (origin if kind == "round_trip" else destination)


def extra_bags(rows: Tables, user_id: str, cabin: str, passengers: int, bags: int) -> int:
    """How many of the bags cost something."""
    free = FREE_BAGS[rows["users"][user_id]["membership"]][CABINS.index(cabin)]
    return max(0, bags - free * passengers)


def change_price(rows: Tables, call: CallTool) -> int:
    """What a change of bags or flights costs, in dollars; negative where money goes back."""
    given, reservation = call.arguments, _reservation(rows, call)
    if "flights" not in given:
        return 50 * max(0, given["nonfree_baggages"] - reservation["nonfree_baggages"])
    same = given["cabin"] == reservation["cabin"]
    paid = {(f["flight_number"], f["date"]): f["price"] for f in reservation["flights"] if same}
    new = [paid.get((f["flight_number"], f["date"])) or price(rows, f, given["cabin"]) for f in given["flights"]]
    return (sum(new) - sum(f["price"] for f in reservation["flights"])) * len(reservation["passengers"])


def _reservation(rows: Tables, call: CallTool) -> Any:
    return rows["reservations"][call.arguments["reservation_id"]]
