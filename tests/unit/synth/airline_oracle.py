"""An independent reading of airline's policy.md and of what customers say: what made tasks are tested with.

It uses nothing of `tau2rl.synth`. From the words of a task and tau2's db.json as it is on disk it works out every call that the
customer asks for, and what is against the policy. What it cannot read it does not pass: it raises.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tau2.domains.airline.utils import AIRLINE_DB_PATH

Json = dict[str, Any]
WRITES = {
    "book_reservation", "cancel_reservation", "send_certificate", "update_reservation_baggages", "update_reservation_flights",
    "update_reservation_passengers",
}  # fmt: skip
NOW = datetime.fromisoformat("2024-05-15T15:00:00")
FREE = {
    "regular": {"basic_economy": 0, "economy": 1, "business": 2},
    "silver": {"basic_economy": 1, "economy": 2, "business": 3},
    "gold": {"basic_economy": 2, "economy": 3, "business": 4},
}
RESERVATION = (
    r"(reservation [A-Z0-9]{6}|my reservation from [A-Z]{3} to [A-Z]{3}|my only (?:basic economy|economy|business) reservation"
    r"|the reservation that I (?:booked|paid) (?:the )?\w+(?: for)?)"
)
CABIN = r"(basic economy|economy|business)"
FLIGHT = (
    rf"((?:flight HAT\d+|the (?:cheapest|earliest|latest|shortest) nonstop flight).*? in {CABIN}"
    r"(?=, one way|, and settle))"
)
PASSENGER = r"([A-Z][\w'-]*) ([A-Z][\w'-]*) \(born (\d{4}-\d\d-\d\d)\)"
INSURED = ("I have fallen ill", "my doctor told me not to fly", "a storm is forecast", "the weather will be too bad")


@cache
def database() -> Json:
    return json.loads(Path(AIRLINE_DB_PATH).read_text("utf-8"))


def spoken(task: Json) -> list[str]:
    """Everything that the user has to say, line by line."""
    told = task["user_scenario"]["instructions"]
    return [told["reason_for_call"], *told["known_info"].splitlines()]


def words(task: Json) -> str:
    """What the user wants: without a wish that the next line takes back, and without what they say that they do not know."""
    lines: list[str] = []
    for line in spoken(task):
        if re.search(r"that last one", line):
            lines.pop()
        elif not re.search(r"(know|have|tell you) the number of that (order|reservation)", line):
            lines.append(line)
    return "\n".join(lines)


def writes(task: Json) -> list[Json]:
    return [action for action in task["evaluation_criteria"]["actions"] if action["name"] in WRITES]


def customer(task: Json) -> str:
    (id,) = re.findall(r"my user id is (\w+)\.", words(task))
    name = database()["users"][id]["name"]
    assert f"My name is {name['first_name']} {name['last_name']} and" in words(task), task["id"]
    return id


def asked_for(task: Json) -> tuple[list[tuple[str, Json]], list[str]]:
    """(the calls that the words come to, what is against the policy)."""
    user_id, calls, wrong = customer(task), list[tuple[str, Json]](), list[str]()
    for clause in _clauses(task):
        name, arguments, against = _read(user_id, clause)
        calls.append((name, arguments))
        wrong += [f"{name}: {why}" for why in against]
    return calls, wrong


def check(task: Json, proof: Json) -> None:
    """The writes are what the words come to and within the policy; where there are none, the one request is against it."""
    assert customer(task) == proof["user_id"]
    calls, wrong = asked_for(task)
    if proof["writes"]:
        assert wrong == [], task["id"]
        done = [(call["name"], call["arguments"]) for call in writes(task)]
        assert sorted(map(_key, calls)) == sorted(map(_key, done)), task["id"]
    else:
        assert len(calls) == 1, task["id"]
        assert len(wrong) == 1, task["id"]
        assert not writes(task), task["id"]
    told = task["evaluation_criteria"]["communicate_info"]
    assert told == _answers(task, calls), task["id"]


def _key(call: tuple[str, Json]) -> str:
    return json.dumps(call, sort_keys=True)


def _clauses(task: Json) -> list[str]:
    """The requests, each after its correction."""
    found: list[str] = []
    for line in words(task).splitlines():
        if right := re.match(r"Sorry, .*It has to be (.*)\.$", line):
            pattern = r"\d+ more checked bags?" if "miscounted" in line else PASSENGER
            found[-1], count = re.subn(pattern, right[1], found[-1])
            assert count == 1, line
        elif not line.startswith("My name is") and not _question(line):
            found.append(line)
    return found


def _question(line: str) -> re.Match[str] | None:
    return re.search(
        r"(how much money I get back for|what the change of|how much the new booking|what I paid in total for) ", line
    )


def _answers(task: Json, calls: list[tuple[str, Json]]) -> list[str]:
    (line,) = [line for line in words(task).splitlines() if _question(line)] or [""]
    if not line:
        return []
    if "new booking" in line:
        (paid,) = [given["payment_methods"] for name, given in calls if name == "book_reservation"]
        return [str(sum(each["amount"] for each in paid))]
    id = _meant(customer(task), re.findall(RESERVATION, line)[0])
    if "what the change of" in line:
        (given,) = [g for name, g in calls if name == "update_reservation_flights" and g["reservation_id"] == id]
        return [str(abs(_difference(given)))]
    return [str(_paid(database()["reservations"][id]))]


def _read(user_id: str, clause: str) -> tuple[str, Json, list[str]]:
    """(tool, arguments, what is against the policy) of one request."""
    db, user = database(), database()["users"][user_id]
    if "book " in clause and ", one way, " in clause:
        return _book(user_id, clause)
    id = _meant(user_id, re.findall(RESERVATION, clause)[0])
    reservation = db["reservations"][id]
    given: Json = {"reservation_id": id}
    states = [db["flights"][flight["flight_number"]]["dates"][flight["date"]]["status"] for flight in reservation["flights"]]
    wrong = ["flown"] if {"landed", "flying"} & set(states) else []
    premium = reservation["cabin"] == "business" or reservation["insurance"] == "yes"
    people = len(reservation["passengers"])
    if "get compensated" in clause:
        wrong = [] if "cancelled" in states else ["no flight was cancelled"]
        wrong += [] if premium or user["membership"] != "regular" else ["no right to a compensation"]
        return "send_certificate", {"user_id": user_id, "amount": 100 * people}, wrong
    if " cancel " in clause:
        recent = (NOW - datetime.fromisoformat(reservation["created_at"])).total_seconds() <= 24 * 3600
        covered = reservation["insurance"] == "yes" and any(reason in clause for reason in INSURED)
        if not (recent or covered or "cancelled" in states or reservation["cabin"] == "business"):
            wrong.append("no ground to cancel")
        assert ("because the airline cancelled" in clause) <= ("cancelled" in states), clause
        return "cancel_reservation", given, wrong
    if bags := re.search(r"add (\d+) more checked bags?|take (one) checked bag off", clause):
        total = reservation["total_baggages"] + (int(bags[1]) if bags[1] else -1)
        paid = max(0, total - FREE[user["membership"]][reservation["cabin"]] * people)
        given |= {"total_baggages": total, "nonfree_baggages": paid, "payment_id": None}
        if bags[2]:
            return "update_reservation_baggages", given, ["bags are removed"]
        given["payment_id"] = _payment(user, clause, 50 * (paid - reservation["nonfree_baggages"]))
        return "update_reservation_baggages", given, []
    if person := re.search(rf"replace (?:the passenger ([\w' -]+?)|me) in .* with {PASSENGER}", clause):
        new = {"first_name": person[2], "last_name": person[3], "dob": person[4]}
        old = [f"{p['first_name']} {p['last_name']}" for p in reservation["passengers"]]
        leaves = person[1] or f"{user['name']['first_name']} {user['name']['last_name']}"
        assert old.count(leaves) == 1, clause
        given["passengers"] = [new if name == leaves else p for name, p in zip(old, reservation["passengers"], strict=True)]
        return "update_reservation_passengers", given, []
    if "as one more passenger" in clause:
        return "update_reservation_passengers", given, ["another number of passengers"]
    flights = [{key: flight[key] for key in ("flight_number", "date")} for flight in reservation["flights"]]
    cabin = reservation["cabin"]
    if found := re.search(rf"change the cabin of .* to {CABIN}, and settle", clause):
        cabin = found[1].replace(" ", "_")
    else:
        (found,) = re.findall(rf"change the (outbound |return |)trip of .*? to {FLIGHT}", clause)
        assert found[2].replace(" ", "_") == cabin, clause
        flights = _rerouted(reservation, flights, back=found[0] == "return ", phrase=found[1])
        wrong += ["basic economy is changed"] if cabin == "basic_economy" else []
    given |= {"cabin": cabin, "flights": flights}
    given["payment_id"] = _payment(user, clause, _difference(given))
    return "update_reservation_flights", given, wrong


def _book(user_id: str, clause: str) -> tuple[str, Json, list[str]]:
    user = database()["users"][user_id]
    (phrase, cabin), (start, end) = re.findall(FLIGHT, clause)[0], re.findall(r"from ([A-Z]{3}) to ([A-Z]{3})", clause)[0]
    cabin = cabin.replace(" ", "_")
    assert "for myself" in clause
    people = [{**user["name"], "dob": user["dob"]}]
    people += [{"first_name": a, "last_name": b, "dob": c} for a, b, c in re.findall(PASSENGER, clause)]
    wrong = ["more than five passengers"] if len(people) > 5 else []
    flight = _flight(phrase, (start, end), cabin, len(people))
    bags = int((re.findall(r"with (\d+) checked bags?", clause) or [0])[0])
    extra = max(0, bags - FREE[user["membership"]][cabin] * len(people))
    insured = "with travel insurance" in clause
    seat = database()["flights"][flight["flight_number"]]["dates"][flight["date"]]["prices"][cabin]
    total = (seat + 30 * insured) * len(people) + 50 * extra
    arguments = {
        "user_id": user_id, "origin": start, "destination": end, "flight_type": "one_way", "cabin": cabin, "flights": [flight],
        "passengers": people, "payment_methods": [{"payment_id": _payment(user, clause, total, booking=True), "amount": total}],
        "total_baggages": bags, "nonfree_baggages": extra, "insurance": "yes" if insured else "no",
    }  # fmt: skip
    return "book_reservation", arguments, wrong


def _meant(user_id: str, phrase: str) -> str:
    """The one reservation of a user that a phrase describes. Raises ValueError where that is not exactly one."""
    mine = {id: database()["reservations"][id] for id in database()["users"][user_id]["reservations"]}
    if match := re.match(r"reservation (\w{6})", phrase):
        found = [id for id in mine if id == match[1]]
    elif match := re.match(r"my reservation from (\w+) to (\w+)", phrase):
        found = [id for id, r in mine.items() if (r["origin"], r["destination"]) == (match[1], match[2])]
    elif match := re.match(r"my only (.+) reservation", phrase):
        found = [id for id, r in mine.items() if r["cabin"] == match[1].replace(" ", "_")]
    else:
        values = {id: r["created_at"] if "booked" in phrase else _paid(r) for id, r in mine.items()}
        best = max(values.values()) if "last" in phrase or "the most" in phrase else min(values.values())
        found = [id for id, value in values.items() if value == best]
    if len(found) != 1:
        raise ValueError(f"{phrase}: {found}")
    return found[0]


def _paid(reservation: Json) -> int:
    return sum(payment["amount"] for payment in reservation["payment_history"])


def _payment(user: Json, clause: str, amount: int, *, booking: bool = False) -> str:
    """The one payment method that the words name, which may be used and covers the amount."""
    found: list[str] = []
    for id, method in user["payment_methods"].items():
        if method["source"] == "credit_card":
            said = f"my {method['brand'].capitalize()} ending in {method['last_four']}"
        else:
            said = {"gift_card": "my gift card", "certificate": "my travel certificate"}[method["source"]]
        if said in clause and (method["source"] != "certificate" or booking):
            assert method.get("amount", amount) >= amount, clause
            found.append(id)
    assert len(found) == 1, (clause, found)
    return found[0]


def _flight(phrase: str, route: tuple[str, str], cabin: str, people: int) -> dict[str, str]:
    """The one nonstop flight of a route that a phrase describes."""
    first, last = (re.findall(r"May (\d+)", phrase) * 2)[:2]
    open: list[tuple[float, str, str]] = []
    for number, flight in database()["flights"].items():
        if (flight["origin"], flight["destination"]) != route:
            continue
        leaves, lands = _hours(flight["scheduled_departure_time_est"]), _hours(flight["scheduled_arrival_time_est"])
        for day in range(int(first), int(last) + 1):
            state = flight["dates"].get(f"2024-05-{day:02}", {})
            if state.get("status") == "available" and state["available_seats"][cabin] >= people:
                kinds = {"cheapest": state["prices"][cabin], "earliest": leaves, "latest": -leaves, "shortest": lands - leaves}
                rank = next((value for kind, value in kinds.items() if f"the {kind} " in phrase), 0)
                open.append((rank, number, f"2024-05-{day:02}"))
    if number := re.search(r"flight (HAT\d+)", phrase):
        open = [each for each in open if each[1] == number[1]]
    best = [each for each in open if each[0] == min(open)[0]]
    assert len(best) == 1, (phrase, best)
    if "seat" in phrase:
        assert (f"at least {people} seats left" if people > 1 else "a seat left") in phrase, phrase
    return {"flight_number": best[0][1], "date": best[0][2]}


def _hours(time: str) -> float:
    clock, _, later = time.partition("+")
    hour, minute, _ = clock.split(":")
    return int(hour) + int(minute) / 60 + 24 * int(later or 0)


def _rerouted(reservation: Json, flights: list[dict[str, str]], *, back: bool, phrase: str) -> list[dict[str, str]]:
    """The whole trip with one direction on another flight, which leaves the other direction's dates alone."""
    start, end = reservation["origin"], reservation["destination"]
    ends = [database()["flights"][flight["flight_number"]]["destination"] for flight in flights]
    there, home = flights[: ends.index(end) + 1], flights[ends.index(end) + 1 :]
    new = _flight(phrase, (end, start) if back else (start, end), reservation["cabin"], len(reservation["passengers"]))
    if back:
        assert there[-1]["date"] < new["date"], phrase
        return [*there, new]
    assert not home or new["date"] < home[0]["date"], phrase
    return [new, *home]


def _difference(given: Json) -> int:
    """What new flights or another cabin cost more."""
    reservation = database()["reservations"][given["reservation_id"]]
    total = 0
    for flight in given["flights"]:
        old = [f for f in reservation["flights"] if (f["flight_number"], f["date"]) == (flight["flight_number"], flight["date"])]
        if old and given["cabin"] == reservation["cabin"]:
            total += old[0]["price"]
            continue
        state = database()["flights"][flight["flight_number"]]["dates"][flight["date"]]
        assert state["status"] == "available"
        assert state["available_seats"][given["cabin"]] >= len(reservation["passengers"])
        total += state["prices"][given["cabin"]]
    return (total - sum(flight["price"] for flight in reservation["flights"])) * len(reservation["passengers"])
