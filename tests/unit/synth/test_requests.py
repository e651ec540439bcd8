"""A domain's rules and affordances, on tau2's own database:

- every rule quotes the installed policy, word for word
- a request that breaks no rule is carried out by tau2 without an error and changes the database, the same way twice
- its words hold every fact
- a changed trip does not go back on the day on which it goes, on the last day of the data neither
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tau2rl.env.task_replay import Replayer
from tau2rl.synth.airline import Airline
from tau2rl.synth.request import Affordances
from tau2rl.synth.retail import Retail
from tau2rl.synth.rules import RuleBook, Tables

LAST = "2024-05-30"  # day of flights that can still be booked


@pytest.mark.parametrize(("name", "make"), [("airline", Airline), ("retail", Retail)])
def test_legal_requests_are_carried_out_and_change_the_database(name: str, make: Callable[[Tables], Affordances]) -> None:
    replayer = Replayer(name)
    domain, rng, start = make(replayer.rows()), random.Random(0), replayer.run(()).hash
    book = RuleBook(name, replayer.policy, domain.checks, domain.task_checks)
    tools: set[str] = set()
    for _ in range(400):
        user = rng.choice(domain.users())
        made = domain.draw(user, rng)
        if made is None or book.broken(domain.rows, user, made.call, made.told):
            continue
        once, twice = replayer.run((made.call,)), replayer.run((made.call,))
        assert once == twice, made
        assert once.errors == ("",), made
        assert once.hash != start, made
        assert all(fact in made.say for fact in made.facts), made
        tools.add(made.call.name)
    assert tools == replayer.writes


def test_a_changed_trip_goes_before_it_comes_back() -> None:
    domain, rng = Airline(Replayer("airline").rows()), random.Random(0)
    late = [
        r for r in domain.rows["reservations"].values() if r["flight_type"] == "round_trip" and r["flights"][-1]["date"] == LAST
    ]
    drawn = [made for r in late for _ in range(60) if (made := domain.draw(r["user_id"], rng))]
    changed = [made for made in drawn if made.say.startswith("change the outbound trip")]
    assert len(changed) > 20
    for made in changed:
        there, *_, back = made.call.arguments["flights"]
        assert there["date"] < back["date"], made
