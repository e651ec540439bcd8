"""`tau2rl report --html` and `--md`, pinned here on evaluations that were really played, and on hostile ones:

- one file: no script, no style attribute, nothing that is fetched; the policy allows its one style sheet by hash and nothing else
- its numbers are those of `report.json`; published rows stand beside runs on their own tasks and split, and nowhere else
- hostile names, texts and 10 MB strings are text, escaped and cut; no control character and no mark that turns text
- twenty conversations, the same each time, half of them solved where there are so many
- several runs with one name are told apart; an incomplete run shows no number; a folder without a report is refused
- the page is that in Chromium too: nothing refused, nothing wider than a phone (where chromium is installed)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.runs import records
from tau2rl.types import Message

runner = CliRunner()
HOSTILE = "<script>alert(1)</script><img src=//x onerror=alert(2)> \x1b]0;owned\x07\x1b[2J \u202egnp.exe \x00 =cmd()"
GOLD = ["eval", "--inline", "--policy", "gold", "--user-model", "scripted", "--protocol", "transcript"]
MOCK = ["--domains", "mock", "--task-split", "synth-test", "--limit", "20", "--num-samples", "2", "--set", "limits.max_turns=3"]


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    tau2rl(*GOLD, *MOCK, "--name", "<b>name</b>", "--output", folder)
    lines = [records.decode(line) for line in (folder / "episodes.jsonl").read_bytes().splitlines()]
    long, longest = (HOSTILE + "word " * times for times in (6_000, 2_000_000))
    spoilt: list[Any] = []
    for number, one in enumerate(lines):
        said = {"role": "user", "content": long if number else longest}
        messages = (*one.episode.messages, Message(role="assistant", content=HOSTILE))
        spoilt.append(replace(one, episode=replace(one.episode, messages=messages, trajectory=(*one.episode.trajectory, said))))
    (folder / "episodes.jsonl").write_bytes(b"".join(map(records.encode, spoilt)))
    return folder


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    file = run.parent / "a.html"
    told = tau2rl("report", run, "--html", file)
    assert told.stdout.startswith(str(file))
    return file.read_text("utf-8")


def test_the_page_is_one_file_that_loads_and_runs_nothing(page: str) -> None:
    seen = Seen(page)
    assert {tag for tag, _ in seen.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "base"} == set()
    names = {name for _, attributes in seen.tags for name in attributes}
    assert not any(name.startswith("on") for name in names)
    assert names & {"style", "src", "srcset", "action"} == set()
    assert all(str(attributes["href"]).startswith("#") for _, attributes in seen.tags if "href" in attributes)
    policy = next(a["content"] for t, a in seen.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_hostile_text_is_text(page: str) -> None:
    assert len(page) < 400_000  # ten megabytes were cut
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert "&lt;b&gt;name&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "more characters" in page


def test_its_numbers_are_those_of_the_report(run: Path, page: str) -> None:
    report = json.loads((run / "report.json").read_text())
    words = " ".join(" ".join(Seen(page).words).split())
    estimate = report["overall"]["pass@1"]
    low, high = estimate["ci95"]
    assert f"{100 * estimate['value']:.1f}% pass@1, 95% interval {100 * low:.1f} to {100 * high:.1f}" in words
    assert f"{report['overall']['pass^2']['value']:.3f}" in words
    assert report["digest"] in words
    assert "No published result on these tasks is listed here" in words
    assert f"tau2rl eval -c {run}/config.json --output" in words


def test_twenty_conversations_are_drawn_the_same_each_time(run: Path, page: str, tmp_path: Path) -> None:
    drawn = re.findall(r'<b class="(good|bad)">(?:not )?solved</b> <code>(.*?)</code>', page)
    counts = json.loads((run / "report.json").read_text())["by_task"].values()
    solved = sum(count["solved"] for count in counts)
    assert len(drawn) == len(set(drawn)) == 20
    assert [kind for kind, _ in drawn].count("good") == min(solved, 20 - min(40 - solved, max(10, 20 - solved)))
    tau2rl("report", run, "--html", tmp_path / "again.html")
    assert (
        re.findall(r'<b class="(good|bad)">(?:not )?solved</b> <code>(.*?)</code>', (tmp_path / "again.html").read_text())
        == drawn
    )


def test_published_rows_stand_beside_their_own_tasks(tmp_path: Path) -> None:
    tau2rl(*GOLD, "--domains", "retail", "--limit", "1", "--output", tmp_path / "test")
    tau2rl(*GOLD, "--domains", "retail", "--limit", "1", "--task-split", "train", "--output", tmp_path / "train")
    for name, there in (("test", True), ("train", False)):
        tau2rl("report", tmp_path / name, "--html", tmp_path / "r.html", "--md", tmp_path / "r.md")
        for file in ("r.html", "r.md"):
            assert ("Qwen3-4B-tau2-grpo-v1" in (tmp_path / file).read_text("utf-8")) == there
    assert "WRIT" not in (tmp_path / "r.html").read_text("utf-8")


def test_runs_with_one_name_are_told_apart_and_incomplete_ones_have_no_number(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "b"
    other.mkdir()
    for name in ("config.json", "environment.json", "report.json", "episodes.jsonl"):
        shutil.copy(run / name, other / name)
    report = json.loads((run / "report.json").read_text())
    report["overall"]["pass@1"] |= {"value": None, "ci95": None, "reason": "1 of 40 attempts missing or failed"}
    report |= {"incomplete": True, "reason": "1 of 40 attempts missing or failed"}
    (other / "report.json").write_text(json.dumps(report))
    tau2rl("report", run, other, "--html", tmp_path / "two.html", "--md", tmp_path / "two.md")
    words = " ".join(Seen((tmp_path / "two.html").read_text("utf-8")).words)
    assert f"({run.parent.name}/a)" in words
    assert f"({tmp_path.name}/b)" in words
    assert "incomplete: 1 of 40 attempts missing or failed" in words
    tables = (tmp_path / "two.md").read_text("utf-8")
    assert "<b>" not in re.sub(r"`[^`]*`", "", tables)  # in code it is text
    assert r"\<b\>name\</b\>" in tables
    assert "\x1b" not in tables


def test_a_page_cannot_be_made_of_nothing(run: Path, tmp_path: Path) -> None:
    assert "not a run folder" in tau2rl("report", tmp_path, "--html", tmp_path / "x.html", code=2).stderr
    shutil.copy(run / "config.json", tmp_path / "config.json")
    assert "has no report yet" in tau2rl("report", tmp_path, "--html", tmp_path / "x.html", code=2).stderr
    assert "is a folder" in tau2rl("report", run, "--html", tmp_path, code=2).stderr
    assert not (tmp_path / "x.html").exists()


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_chromium_refuses_nothing_of_the_page(run: Path, page: str, tmp_path: Path) -> None:
    words = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
        "--v=0",
    ]
    done = subprocess.run(
        [*words, "--window-size=390,800", "--dump-dom", (run.parent / "a.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr  # a refusal of the policy would be a line of the console
    assert len(Seen(done.stdout).tags) == len(Seen(page).tags)
