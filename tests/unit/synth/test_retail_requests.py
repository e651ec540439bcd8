"""Retail's rules and affordances, on tau2's own database:

- every rule quotes the installed policy, word for word
- a request that breaks no rule is carried out by tau2 without an error and changes the database, the same way twice
- its words hold every fact
"""

from __future__ import annotations

import random

from tau2rl.env.task_replay import Replayer
from tau2rl.synth.retail import Retail
from tau2rl.synth.retail_checks import CHECKS, TASK_CHECKS
from tau2rl.synth.rules import RuleBook


def test_legal_requests_are_carried_out_and_change_the_database() -> None:
    replayer = Replayer("retail")
    rows = replayer.rows()
    book = RuleBook("retail", replayer.policy, CHECKS, TASK_CHECKS)
    retail, rng, start = Retail(rows), random.Random(0), replayer.run(()).hash
    tools: set[str] = set()
    for _ in range(400):
        user = rng.choice(retail.users())
        made = retail.draw(user, rng)
        if made is None or book.broken(rows, user, made.call, made.told):
            continue
        once, twice = replayer.run((made.call,)), replayer.run((made.call,))
        assert once == twice, made
        assert once.errors == ("",), made
        assert once.hash != start, made
        assert all(fact in made.say for fact in made.facts), made
        tools.add(made.call.name)
    assert tools == replayer.writes
