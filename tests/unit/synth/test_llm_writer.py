"""`tau2rl synth --writer llm` against a stub model, pinned here:

- a model that says lines anew and keeps their facts gives tasks in its words, which their demonstrations solve;
- the same command again asks nobody and gives the same bytes, and the card counts calls, tokens and faults;
- a text that lost, added or gave away a fact is asked for again with its faults;
- several texts are written at once: a model that answers in another order gives the same bytes, and a text that cannot be
  written is replaced by one of another task;
- a model that never keeps the facts is refused after some texts, and nothing is written;
- telecom is written the same way;
- what only the second reading shows (another purpose, an invented detail) is a fault too.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tests.stubs.openai import OpenAIStub

runner = CliRunner()
PURPOSES = (  # words of a line -> what it is
    (r"customer number|without it", "does_not_know_a_number"),
    (r"^So: (My name is|I'm \w+ \w+, born)", "says_who_they_are"),
    (r"how much my bill", "asks_for_information"),
    (r"^So: Sorry, .*amount", "corrects_a_mistake"),
    (r" GB|open bill|still owe", "says_what_they_would_pay_for"),
    (r"abroad|in the United States", "says_where_they_are"),
    (r"won't do for me|speed test|All I want", "says_what_they_expect"),
    (r"no signal|no service|no network|lost its network", "has_no_service"),
    (r"internet|mobile data|pages hardly", "has_no_or_slow_data"),
    (r"MMS|pictures|picture messages|photos as messages", "cannot_send_mms"),
    (r"My name is", "says_who_they_are"),
    (r"that last one", "takes_the_last_wish_back"),
    (r"the number of that", "does_not_know_a_number"),
    (r"^So: Sorry", "corrects_a_mistake"),
    (r"default address on my profile", "modify_user_address"),
    (r"shipping address", "modify_pending_order_address"),
    (r"switch the payment", "modify_pending_order_payment"),
    (r"\bcancel\b", "cancel_pending_order"),
    (r"\breturn\b", "return_delivered_order_items"),
    (r"\bexchange\b", "exchange_delivered_order_items"),
    (r"\bswap\b", "modify_pending_order_items"),
)


class Model:
    """Says every line with "So: " in front, reads them by `PURPOSES`, and spoils what `spoil` says of the n-th text."""

    def __init__(self, spoil: Any = lambda number, lines: lines, misread: Any = lambda lines: lines) -> None:
        self.kept: dict[str, list[str]] = {}
        self.spoil, self.misread, self.texts = spoil, misread, 0

    def __call__(self, messages: list[dict[str, Any]], tools: Any) -> str:
        asked = json.loads(messages[1]["content"])
        if "manner" in asked:
            said = [f"So: {line['say']}" for line in asked["lines"]]
            self.kept |= {new: line["keep"] for new, line in zip(said, asked["lines"], strict=True)}
            self.texts += 1
            return json.dumps({"lines": self.spoil(self.texts, said)})
        read = [{"kind": self._kind(line), "facts": self.kept[line]} for line in asked["lines"]]
        return "```json\n" + json.dumps({"lines": self.misread(read)}) + "\n```"

    def _kind(self, line: str) -> str:
        return next((kind for words, kind in PURPOSES if re.search(words, line)), "asks_for_information")


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Any]:
    """Run the command with a model; its JSON, or what it said."""
    with OpenAIStub() as server:
        retail = ("--writes", "1,2", "--burdens", "0-2,3-5")

        def run(
            model: Model, folder: str, *, code: int = 0, latency: Any = 0.0, grid: tuple[str, ...] = retail, **more: Any
        ) -> dict[str, Any]:
            server.answer, server.latency, server.traffic.max_in_flight = model, latency, 0
            before = len(server.bodies)
            writer = {"model": "openai/any", "api_base": server.api_base, "cache": tmp_path / "cache", **more}
            sets = [f"--set=writer.{name}={value}" for name, value in writer.items()]
            done = runner.invoke(
                app,
                ["synth", "--num-tasks", "6", *grid, "--seed", "4", "--writer", "llm", *sets,
                 "--output", str(tmp_path / folder), "--json"],
            )  # fmt: skip
            assert done.exit_code == code, done.output
            asked = len(server.bodies) - before
            return {
                "asked": asked,
                "most_at_once": server.max_in_flight,
                **(json.loads(done.stdout) if done.stdout else {"error": done.stderr}),
            }

        yield run


def tasks(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "tasks.json").read_text("utf-8"))


def test_tasks_in_a_models_words_are_solved_by_their_demonstrations(tmp_path: Path, written: Any) -> None:
    first = written(Model(), "a")
    made = tasks(tmp_path / "a")
    assert len(made) == 6 and all(t["user_scenario"]["instructions"]["reason_for_call"].startswith("So: ") for t in made)
    spent = first["writer"]
    assert (spent["calls"], spent["texts"], spent["rewritten"]) == (first["asked"], 6, 0) == (12, 6, 0)
    assert spent["prompt_tokens"] > 0 and "said the templates' lines anew" in first["licence"]
    report = runner.invoke(
        app,
        ["seed", "--domains", "retail", "--task-source", str(tmp_path / "a" / "tasks.json"), "--task-split", "base",
         "--set", "allow_held_out=true", "--output", str(tmp_path / "seed"), "--inline", "--json"],
    )  # fmt: skip
    assert report.exit_code == 0, report.output
    assert (json.loads(report.stdout)["solved"], json.loads(report.stdout)["tried"]) == (6, 6)
    again = written(Model(), "b")
    assert again["asked"] == 0 and again["writer"]["from_cache"] == 12
    assert (tmp_path / "a" / "tasks.json").read_bytes() == (tmp_path / "b" / "tasks.json").read_bytes()


def test_telecom_in_a_models_words(tmp_path: Path, written: Any) -> None:
    """The same round trip over what is wrong, where the user is, and what they would pay for."""
    grid = ("--domain", "telecom", "--problems", "1,2", "--personas", "hard", "--twists", "corrected,does_not_know,none")
    first = written(Model(), "a", grid=grid)
    made = tasks(tmp_path / "a")
    assert len(made) == 6 and all(t["user_scenario"]["instructions"]["reason_for_call"].startswith("So: ") for t in made)
    assert all(t["user_scenario"]["persona"] for t in made)
    assert (first["writer"]["texts"], first["writer"]["rewritten"]) == (6, 0)
    source = ["--domains", "telecom", "--task-source", str(tmp_path / "a" / "tasks.json"), "--task-split", "base"]
    report = runner.invoke(
        app, ["seed", *source, "--set", "allow_held_out=true", "--output", str(tmp_path / "seed"), "--inline", "--json"]
    )
    assert report.exit_code == 0, report.output
    assert (json.loads(report.stdout)["solved"], json.loads(report.stdout)["tried"]) == (6, 6)

    def forgets(number: int, lines: list[str]) -> list[str]:
        return [line.replace("555-", "556-") for line in lines]

    assert "missing: " in written(Model(spoil=forgets), "b", grid=grid, cache=tmp_path / "other", code=2)["error"]


def test_texts_are_written_at_once_and_stand_in_order(tmp_path: Path, written: Any) -> None:
    class Hasty(Model):
        """Never keeps the facts of what is said in a hurry."""

        def __call__(self, messages: list[dict[str, Any]], tools: Any) -> str:
            said = super().__call__(messages, tools)
            if "in a hurry" not in json.loads(messages[1]["content"]).get("manner", ""):
                return said
            return json.dumps({"lines": json.loads(said)["lines"][:-1]})

    made: dict[int, dict[str, bytes]] = {}
    for at_once in (6, 1):
        late = random.Random(at_once)
        card = written(
            Hasty(),
            f"{at_once}",
            concurrency=at_once,
            cache=tmp_path / f"cache-{at_once}",
            latency=lambda late=late: late.random() / 10,
        )
        made[at_once] = {file.name: file.read_bytes() for file in (tmp_path / f"{at_once}").iterdir()}
        assert (card["most_at_once"] > 1) == (at_once > 1)
        assert card["tasks"] == 6 and card["thrown_away"]["the writer changed a fact"] > 0  # others came in their place
    assert made[6] == made[1]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda lines: [*lines[:-1], "So: that is it."], "missing"),
        (lambda lines: [f"{lines[0]} It is order #W9999999.", *lines[1:]], "added"),
        (lambda lines: [f"{lines[0]} Ask Barbara.", *lines[1:]], "added"),
        (lambda lines: [f"{lines[0]} {lines[1]}", *lines[1:]], "leaked"),
        (lambda lines: lines[:-1], "lines"),
    ],
)
def test_a_text_with_a_changed_fact_is_asked_for_again(written: Any, spoil: Any, fault: str) -> None:
    model = Model(spoil=lambda number, lines: spoil(lines) if number == 1 else lines)
    spent = written(model, "a")["writer"]
    assert (spent["texts"], spent["rewritten"]) == (6, 1)
    assert fault in spent["faults"]


def test_a_model_that_changes_facts_is_refused(tmp_path: Path, written: Any) -> None:
    said = written(Model(spoil=lambda number, lines: [*lines[:-1], "So: never mind."]), "a", code=2)
    assert "changed facts in 10 texts in a row" in said["error"] and "missing: " in said["error"]
    assert 30 <= said["asked"] <= 36  # three tries of each, none is read back; all six of a round may be under way
    assert not (tmp_path / "a" / "tasks.json").exists()


def test_what_only_a_second_reading_shows_is_a_fault(written: Any) -> None:
    wrong = {"kind": "cancel_pending_order", "facts": ["two green elephants"]}
    said = written(Model(misread=lambda lines: [wrong, *lines[1:]]), "a", code=2)
    assert "invented: line 1: elephants, green, two" in said["error"] and "lost: line 1" in said["error"]
