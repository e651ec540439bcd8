"""The sandbox and its journal, by themselves, pinned here:

- a call that is refused has no effect, even where tau2's tool changes rows and then raises: hash, journal and replay agree;
- a journal brings the database back; one of another domain, or a file that is none, is refused and left as it is;
- a journal that ends anywhere is mended: a whole line is kept, the beginning of one is dropped;
- where the journal cannot be written, neither it nor the database has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tau2rl.env.domain import domain
from tau2rl.env.sandbox import Sandbox
from tau2rl.errors import UserError
from tau2rl.types import CallTool

from tau2.data_model.message import ToolCall


def titles_in(sandbox: Sandbox) -> list[str]:
    return [call.arguments["title"] for call in sandbox.committed()]


def written(journal: Path, *titles: str) -> Sandbox:
    """A sandbox that has committed tasks of these titles."""
    sandbox = Sandbox("mock", journal=journal)
    for title in titles:
        call = CallTool(name="create_task", arguments={"user_id": "user_1", "title": title})
        assert sandbox.commit([sandbox.copy().act(call)])
    return sandbox


def test_a_journal_brings_the_database_back(tmp_path: Path) -> None:
    journal = tmp_path / "commits.jsonl"
    sandbox = written(journal, "Alpha")
    after = sandbox.copy().hash()
    again = Sandbox("mock", journal=journal)
    assert (again.copy().hash(), titles_in(again)) == (after, ["Alpha"])
    with pytest.raises(UserError, match="does not fit the database"):
        Sandbox("retail", journal=journal)
    for text in ("{\n", "my notes", "[1]\n"):
        journal.write_text(text)
        with pytest.raises(UserError, match="no journal"):
            Sandbox("mock", journal=journal)
        assert journal.read_text() == text
    with pytest.raises(UserError, match="is no folder"):
        Sandbox("mock", journal=tmp_path / "nowhere" / "commits.jsonl")


def test_a_journal_whose_writer_was_stopped_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = tmp_path / "commits.jsonl"
    written(journal, "Alpha", "Beta")
    whole = journal.read_bytes()
    for kept in range(len(whole) - 1, 0, -7):  # a file that ends anywhere
        journal.write_bytes(whole[:kept])
        there = [line for line in whole.splitlines() if whole.index(line) + len(line) <= kept]
        expected = [json.loads(line)["arguments"]["title"] for line in there]
        again = written(journal, "Gamma")
        assert titles_in(again) == titles_in(Sandbox("mock", journal=journal)) == [*expected, "Gamma"]
    assert "is dropped" in caplog.text


def test_a_journal_that_cannot_be_written_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "commits.jsonl"
    sandbox = written(journal, "Alpha")
    before, text = sandbox.copy().hash(), journal.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        written(journal, "Beta")
    with pytest.raises(OSError, match="No space"):
        sandbox.commit([sandbox.copy().act(CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Beta"}))])
    assert (sandbox.copy().hash(), titles_in(sandbox), journal.read_bytes()) == (before, ["Alpha"], text)


def booking(sandbox: Sandbox) -> CallTool:
    """A reservation that is paid with one certificate, listed twice: tau2 takes the seats, then raises."""
    database = domain("airline").environment().tools.db
    user, payment = next(
        (user, payment)
        for user in database.users.values()
        for payment in user.payment_methods.values()
        if payment.source == "certificate"
    )
    flight, date, seats = next(
        (flight, date, seats)
        for flight in database.flights.values()
        for date, seats in flight.dates.items()
        if seats.status == "available" and 0 < seats.prices["economy"] <= payment.amount and seats.available_seats["economy"]
    )
    half = {"payment_id": payment.id, "amount": seats.prices["economy"] / 2}
    passenger = {"first_name": "Ada", "last_name": "Byron", "dob": "1990-01-01"}
    arguments = {
        "user_id": user.user_id, "origin": flight.origin, "destination": flight.destination, "flight_type": "one_way",
        "cabin": "economy", "flights": [{"flight_number": flight.flight_number, "date": date}], "passengers": [passenger],
        "payment_methods": [half, half], "total_baggages": 0, "nonfree_baggages": 0, "insurance": "no",
    }  # fmt: skip
    return CallTool(name="book_reservation", arguments=arguments)


def test_a_refused_call_has_no_effect(tmp_path: Path) -> None:
    journal = tmp_path / "commits.jsonl"
    sandbox = Sandbox("airline", journal=journal)
    twice = booking(sandbox)
    alone = domain("airline").environment()
    before = alone.get_db_hash()
    answer = alone.get_response(ToolCall(id="1", name=twice.name, arguments=twice.arguments, requestor="assistant"))
    assert answer.error and alone.get_db_hash() != before  # tau2 itself
    once = CallTool(
        name=twice.name, arguments={**twice.arguments, "payment_methods": [{**twice.arguments["payment_methods"][0]}]}
    )
    once.arguments["payment_methods"][0]["amount"] *= 2
    attempt = sandbox.copy()
    assert attempt.act(twice).error and attempt.hash() == before
    carried = [attempt.act(once), attempt.act(twice)]
    assert [one.error for one in carried] == [False, True]
    assert sandbox.commit(carried)
    assert before != attempt.hash() == sandbox.copy().hash() == Sandbox("airline", journal=journal).copy().hash()
