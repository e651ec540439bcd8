"""What the gates over a simulated user remember, and whom they leave alone:

- a scripted user on made tasks of each domain, whose gold evaluation is 1, is blamed for nothing;
- what a tool showed the user is no agent's words in its mouth, what no tool showed is, and so is what the agent's tools showed;
- a yes to another proposal is no repetition;
- what users say and agents say too is no flip beside words of their own; sums, roundings, the day after, percentages and a story
  that was asked for are no inventions; days, times, amounts and streets from nowhere are;
- courtesy and a finished episode leave nothing open, a proposal does, in JSON and with typographic apostrophes too;
- a fact is known exactly where reading the whole text again finds it; each text is read once, however many facts come.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.verify import user_faults
from tau2rl.verify.user_faults import DATE, Known, Line, UserGates

QUOTED = "It says: Your SIM card is active and working."
SHOWN = "Your SIM card is active\nand working."


def tau2rl(*words: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("domain", ["retail", "airline", "telecom"])
def test_the_scripted_user_of_made_tasks_is_blamed_for_nothing(domain: str, tmp_path: Path) -> None:
    tau2rl("synth", "--domain", domain, "--num-tasks", 12, "--seed", 7, "--output", tmp_path / "made")
    made = ["--domains", domain, "--task-source", tmp_path / "made" / "tasks.json", "--task-split", "base"]
    gold = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted", "--num-samples", 1, "--inline"]
    report = tau2rl("eval", *made, *gold, "--output", tmp_path / "run")
    assert report["overall"]["pass@1"]["value"] == 1.0
    blamed = tau2rl("blame", tmp_path / "run")
    assert (blamed["scores"][domain]["raw"]["value"], blamed["episodes"]) == (1.0, [])
    paces = [
        json.loads(line)["behaviour"]["pace"] for line in (tmp_path / "made" / "proofs.jsonl").read_text("utf-8").splitlines()
    ]
    assert {"all_at_once", "when_asked"} <= set(paces)


def gates(**facts: Any) -> UserGates:
    values = {"instructions": "You are Mei Kovacs.", "reason": "", "domain_policy": "", "unfinished": False} | facts
    return UserGates(**values)


def names(heard: UserGates, *lines: Line) -> list[str]:
    return [name for line in lines for name, _ in heard.hear(line)]


def test_what_the_phone_showed_is_a_quotation() -> None:
    look = Line(who="user", text="", calls=("check_sim_status",))
    look_up = Line(who="agent", text="", calls=("get_details_by_id",))
    shown, says = Line(who="tool", text=SHOWN), Line(who="user", text=QUOTED)
    assert names(gates(), look, shown, says) == []
    assert names(gates(), says) == ["role_flip"]
    assert names(gates(), look_up, shown, says) == ["role_flip"]
    assert names(gates(), look, shown, Line(who="user", text=f"{QUOTED} How may I help you?")) == ["role_flip"]


def test_a_yes_to_another_proposal_is_no_repetition() -> None:
    again = "I really want my money back."
    for answer, found in (("Yes, please go ahead.", []), (again, ["repetition"])):
        lines = [
            line
            for thing in ("lamp", "desk", "chair", "shelf")
            for line in (Line(who="agent", text=f"I would return the {thing}. Shall I?"), Line(who="user", text=answer))
        ]
        assert names(gates(), *lines) == found


FIRST = Line(who="user", text="I have a question.")
ASKED = Line(who="agent", text="Your order of $120.50 and the lamp of $80 arrive on May 18. May I have your zip code?")


@pytest.mark.parametrize(
    "text",
    [
        "If you need anything else from me, just let me know.",
        "I’d like to wait. Please hold off on the transfer, I understand your policy.",
        "I apologize for the confusion. I'll get back to you.",
        "Could you please provide the details? How many passengers are there?",
        "I don't have it. Is there anything else I can provide?",
        "So that's $200.50 together, or about 200, and 241 for two of them?",
        "I'm not 100% sure, but May 19 would do.",
    ],
)
def test_what_users_say_is_theirs(text: str) -> None:
    assert names(gates(), FIRST, ASKED, Line(who="user", text=text)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Great. Your order has been processed. Is there anything else I can assist you with?", "role_flip"),
        ("I will now cancel the order and start the return.", "role_flip"),
        ("I paid $412.75 for it.", "invented_fact"),
        ("It must be there on June 3.", "invented_fact"),
        ("It must be there by 10:47.", "invented_fact"),
        ("Send it to 77 Lakeview Ave.", "invented_fact"),
        ("My sister Karen will take it.", "invented_fact"),
    ],
)
def test_what_comes_from_nowhere_or_is_an_agents_is_a_fault(text: str, fault: str) -> None:
    assert names(gates(), FIRST, ASKED, Line(who="user", text=text)) == [fault]
    told = gates(instructions="You are Mei Kovacs. Make up a story about a lost parcel.")
    assert names(told, FIRST, ASKED, Line(who="user", text=text)) == ([] if fault == "invented_fact" else [fault])


@pytest.mark.parametrize(
    ("agent", "faults"),
    [
        ("I would cancel it. Shall I?", ["stopped_too_early"]),
        ("I’ll cancel it then.", ["stopped_too_early"]),
        ('{"message": "It is cancelled.\\n\\nAnything else I can help with?"}', []),
        ("It is cancelled. If you need a copy, let me know. Take care, and feel free to reach out.", []),
    ],
)
def test_courtesy_leaves_nothing_open(agent: str, faults: list[str]) -> None:
    stop = Line(who="user", text="Thanks, bye. ###STOP###")
    assert names(gates(unfinished=True), Line(who="agent", text=agent), stop) == faults
    assert names(gates(unfinished=False), Line(who="agent", text=agent), stop) == []


def stood_in(fact: str, text: str) -> bool:
    """The plain way, which reads the whole text for each fact."""
    if (date := DATE.fullmatch(fact)) is not None:
        year, days = user_faults._date(date)
        known = map(user_faults._date, DATE.finditer(text))
        near = {(month, day + by) for month, day in days for by in (-1, 0, 1)}
        return any(near & others and 0 in (year, other, year - other) for other, others in known)
    plain = fact.lower().lstrip("#")
    digits = re.sub(r"[\s().-]", "", plain)
    return plain in text or (digits.isdigit() and digits in re.sub(r"[\s().-]", "", text))


def some_date(rng: random.Random) -> str:
    month, day, year = rng.randint(1, 3), rng.randint(1, 9), rng.choice((1976, 2001))
    name = ("January", "feb.", "Mar")[month - 1]
    return rng.choice((
        f"{year}-{month:02}-{day:02}", f"{month}/{day}/{year}", f"{name} {day}th, {year}", f"{name} {day}", f"{day} of {name}",
        f"{day} {name} {year}",
    ))  # fmt: skip


def some_number(rng: random.Random) -> str:
    return "".join(f"{rng.randint(1, 2)}{rng.choice(('', '', '-', ' ', '.', '(', ')'))}" for _ in range(rng.randint(4, 7)))


def test_a_fact_is_known_where_reading_everything_again_finds_it() -> None:
    rng = random.Random(1)
    found = {True: 0, False: 0}
    for _ in range(300):
        words = [rng.choice((some_date, some_number, lambda _: "#W21x"))(rng) for _ in range(6)]
        texts = [rng.choice((" ", "", "\n", ", ")).join(rng.sample(words, 2)).lower() for _ in range(4)]
        known = Known(texts[0])
        for text in texts[1:]:
            known.add(text)
        for fact in [*words, *(some_date(rng) for _ in range(3)), *(some_number(rng) for _ in range(3)), "#w21X"]:
            wanted = stood_in(fact, "\n".join(texts))
            assert known.has(fact) is wanted, (fact, texts)
            found[wanted] += 1
    assert min(found.values()) > 300


class Counting:
    """A pattern that counts the characters that it is given."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern, self.read = pattern, 0

    def __getattr__(self, name: str) -> Any:
        def counted(*arguments: Any) -> Any:
            self.read += len(arguments[-1])
            return getattr(self._pattern, name)(*arguments)

        return counted


def test_each_text_is_read_once_however_many_facts_come(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    for number in (20, 80):
        patterns = [Counting(pattern) for pattern in (DATE, user_faults.SEPARATORS)]
        for name, pattern in zip(("DATE", "SEPARATORS"), patterns, strict=True):
            monkeypatch.setattr(user_faults, name, pattern)
        heard = gates(domain_policy="Nothing is returned. " * 500)
        for place in range(number):
            heard.hear(Line(who="agent", text=f"Anything about 555-123-{1000 + place} of July {place % 28 + 1}, 1976?"))
            heard.hear(Line(who="user", text=f"It is (555) 123 {1000 + place}, from July {place % 28 + 1}, 1976."))
        read.append([pattern.read for pattern in patterns])
        monkeypatch.undo()
    lines = 60 * 2 * 50  # characters of the further lines, at most
    assert all(few < many <= few + 4 * lines for few, many in zip(*read, strict=True))
