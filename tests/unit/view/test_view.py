"""Looking at runs, pinned here on records that were really played, and on hostile ones:

- the index: a cut last line is no episode until it is whole, appended records are read and no others, a file that was rewritten
  is read again, a retried FAILED attempt counts once, a broken line is counted and passed over, a spoilt index is made again;
- filters, sorting, pages and full-text search; what a person types in a search is never an operator;
- `show`: the list, one conversation with failed checks beside the reference, tokens; no control character reaches stdout;
- the server: without the token, for another host or from another origin an empty 404; the policy on every answer; hostile text in
  JSON only, escaped; pages; what is appended while it serves is there at the next request;
- a pipeline with its stages, runs task by task, a group with the advantage of each turn.
"""

from __future__ import annotations

import http.client
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.errors import UserError
from tau2rl.reward.calibration import write_recipe
from tau2rl.reward.tiers import Tier
from tau2rl.runs.records import encode
from tau2rl.view.index import NAME, Index, Query
from tests.viewing import append, make_pipeline, make_run, record, serving, with_logprobs

runner = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Attempts 0 (solved), 1 (not), 2 (FAILED) at one task, and 0 at another with hostile text."""
    return make_run(tmp_path / "outputs" / "eval" / "a")


def keys(index: Index, **query: Any) -> list[str]:
    assert index.update(seconds=60)
    return [row["key"] for row in index.page(Query(**query)).rows]


def test_a_cut_last_line_is_no_episode_until_it_is_whole(run: Path) -> None:
    line = encode(record(3))
    append(run, line[:100])
    with Index(run) as index:
        assert len(keys(index)) == 4
        append(run, line[100:])
        assert keys(index)[-1] == "mock/create_task_1#3"
        assert index.progress()[0] == index.progress()[1]
    with Index(run) as again:  # and what was read is not read again
        assert again.progress()[0] == again.progress()[1]
        assert len(keys(again)) == 5


def test_a_file_that_was_rewritten_is_read_again(run: Path) -> None:
    with Index(run) as index:
        assert len(keys(index)) == 4
        lines = (run / "episodes.jsonl").read_bytes().splitlines(keepends=True)
        (run / "episodes.jsonl").write_bytes(lines[1] + encode(record(7)) + lines[0] + lines[0])
        assert sorted(keys(index)) == [f"mock/create_task_1#{n}" for n in (0, 1, 2, 7)]


def test_an_attempt_that_was_tried_again_counts_once(run: Path) -> None:
    with Index(run) as index:
        assert keys(index, status="failed") == ["mock/create_task_1#2"]
        append(run, encode(record(2)))
        assert keys(index, status="failed") == []
        assert sorted(keys(index)).count("mock/create_task_1#2") == 1
        assert len(keys(index, every=True)) == 5


def test_broken_lines_and_a_spoilt_index_are_no_end(run: Path) -> None:
    append(run, b'{"schema": 1}\n\xff\xfe not json\n[1]\n' + encode(record(5)))
    (run / NAME).write_bytes(b"this is no database at all, whatever its name says" * 100)
    with Index(run) as index:
        assert "mock/create_task_1#5" in keys(index)
        assert index.unreadable() == 3


def test_filters_sorting_and_search(run: Path) -> None:
    with Index(run) as index:
        assert keys(index, score="<0.5") == ["mock/create_task_1#1", "mock/update_task_1#0"]
        assert keys(index, fault="none") == ["mock/create_task_1#0"]
        for wrong in (Query(fault="foo"), Query(status="foo")):
            with pytest.raises(UserError, match=r"there is no (fault|status) `foo`"):
                index.page(wrong)
        assert keys(index, fault="user") == ["mock/create_task_1#2"]
        assert keys(index, task="update_task") == ["mock/update_task_1#0"]
        assert keys(index, text="Important Meeting", status="completed", score="1") == ["mock/create_task_1#0"]
        assert keys(index, text='owned" OR NEAR(') == []
        assert keys(index, text="alert") == ["mock/update_task_1#0", "mock/create_task_1#2"]
        assert keys(index, sort="task", descending=True)[0] == "mock/update_task_1#0"
        page = index.page(Query(sort="task", offset=1, limit=2))
        assert ([row["attempt"] for row in page.rows], page.total) == ([1, 2], 4)


def test_show_lists_and_shows_one_with_what_was_expected(run: Path) -> None:
    listed = runner.invoke(app, ["show", str(run), "--score", "<0.5", "--json"])
    assert listed.exit_code == 0
    assert [row["key"] for row in json.loads(listed.stdout)["episodes"]] == ["mock/create_task_1#1", "mock/update_task_1#0"]
    shown = runner.invoke(app, ["show", str(run), "create_task_1", "--attempt", "1", "--tokens"])
    assert shown.exit_code == 0, shown.output
    assert 'failed (not in the reward) action: expected create_task(user_id="user_1", title="Important Meeting")' in shown.stdout
    assert "attempt 0: completed, score 1.000, advantage +1.000" in shown.stdout  # (1 - 0.5) / 0.5
    assert "attempt 1: completed, score 0.000, advantage -1.000" in shown.stdout
    assert re.search(r"^ +\d+ 1 +- +-  -1\.000 'N'$", shown.stdout, flags=re.MULTILINE)  # sampled, in the loss
    wrong = runner.invoke(app, ["show", str(run), "--score", "good"])
    assert (wrong.exit_code, "not a comparison" in wrong.stderr) == (2, True)
    assert runner.invoke(app, ["show", str(run), "--attempt", "1"]).exit_code == 2


def test_what_closed_a_thought_at_its_budget_is_not_in_the_loss(run: Path) -> None:
    one = with_logprobs(record(7))
    first = one.episode.turns[0]
    turns = (replace(first, forced=(first.start + 1, first.start + 3)), *one.episode.turns[1:])
    append(run, encode(replace(one, episode=replace(one.episode, turns=turns))))
    shown = runner.invoke(app, ["show", str(run), "create_task_1", "--attempt", "7", "--tokens", "--json"])
    spans = json.loads(shown.stdout)["tokens"]["spans"]
    masks = [(span["mask"], len(span["ids"]), span["logprobs"] and len(span["logprobs"])) for span in spans[1:4]]
    assert masks == [(1, 1, 1), (0, 2, None), (1, first.end - first.start - 3, first.end - first.start - 3)]
    assert [id for span in spans for id in span["ids"]] == list(one.episode.token_ids)


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    assert runner.invoke(app, ["show", str(tmp_path)]).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_ten_megabytes_of_text_are_cut(run: Path) -> None:
    append(run, encode(record(9, says="word " * 2_000_000)))
    shown = runner.invoke(app, ["show", str(run), "create_task_1", "--attempt", "9"])
    assert shown.exit_code == 0, shown.output[:500]
    assert "... 9,980,000 more characters" in shown.stdout
    assert len(shown.stdout) < 100_000
    assert (run / NAME).stat().st_size < 2_000_000


@pytest.mark.parametrize("arguments", [["update_task_1"], ["create_task_1", "--attempt", "2"], []])
def test_hostile_text_never_reaches_the_terminal_raw(run: Path, arguments: list[str]) -> None:
    result = runner.invoke(app, ["show", str(run), *arguments])
    assert result.exit_code == 0, result.output
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.stdout + result.stderr)


@pytest.fixture
def served(run: Path) -> Iterator[str]:
    """HOST:PORT of a real server over the run's outputs folder."""
    with serving(run.parents[1]) as address:
        yield address


def ask(host: str, path: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}


def data(host: str, path: str) -> Any:
    status, body, _ = ask(host, f"/secret/api/{path}")
    assert status == 200, body
    return json.loads(body)


def test_who_has_no_token_or_comes_from_elsewhere_gets_nothing(served: str) -> None:
    assert ask(served, "/secret/api/runs")[0] == 200
    refused = [
        ask(served, "/"), ask(served, "/api/runs"), ask(served, "/wrong/api/runs"), ask(served, "/secretX/api/runs"),
        ask(served, "/secret/api/runs", Host="evil.example"), ask(served, "/secret/api/runs", Origin="http://evil.example"),
        ask(served, "/secret/api/runs", Sec_Fetch_Site="cross-site"), ask(served, "/secret/api/runs", method="POST"),
        ask(served, "/static/app.js"),
    ]  # fmt: skip
    assert {(status, body) for status, body, _ in refused} == {(404, b"")}
    for path in ("..%2f..%2fserver.py", "%2e%2e/server.py", "../server.py", "/etc/passwd"):
        assert ask(served, f"/secret/static/{path}")[0] == 404


def test_every_answer_has_the_policy_and_no_page_has_inline_code(served: str) -> None:
    for path in ("/secret/", "/secret/static/app.js", "/secret/api/runs", "/nothing"):
        headers = ask(served, path)[2]
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    page = ask(served, "/secret/")[1].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|https?:", page)


def test_conversations_pages_and_comparison_as_data(served: str) -> None:
    (run,) = data(served, "runs")
    name = run["id"]
    assert (run["name"], run["episodes"]) == ("a<b>", True)
    found = data(served, f"runs/{name}/episodes?limit=2&offset=2&sort=task")
    assert (len(found["rows"]), found["total"]) == (2, 4)
    hostile = next(row for row in data(served, f"runs/{name}/episodes?task=update")["rows"])
    status, body, headers = ask(served, f"/secret/api/runs/{name}/episodes/{hostile['id']}")
    assert (status, headers["content-type"]) == (200, "application/json")
    text = json.loads(body)["items"][-1]["text"]
    assert text.startswith("<script>")  # as text: the page makes no HTML of it
    assert "\\x1b[2J \\u202egnp.exe \\x00" in text
    rows = {row["key"]: row["id"] for row in data(served, f"runs/{name}/episodes")["rows"]}
    two = [rows[f"mock/create_task_1#{n}"] for n in (0, 1)]
    compared = data(served, f"compare?a={name}:{two[0]}&b={name}:{two[1]}")
    assert compared["a"]["items"][compared["first"]]["calls"][0]["name"] == "create_task"
    assert compared["a"]["items"][: compared["first"]] == compared["b"]["items"][: compared["first"]]
    assert ask(served, f"/secret/api/runs/{name}/episodes/999")[0] == 400
    assert ask(served, f"/secret/api/runs/{name}/episodes?score=x")[0] == 400
    assert ask(served, f"/secret/api/runs/{name}/episodes?offset=-1")[0] == 400


def test_what_is_written_while_it_serves_is_there_at_the_next_request(served: str, run: Path) -> None:
    name = data(served, "runs")[0]["id"]
    before, version = data(served, f"runs/{name}"), data(served, f"version?runs={name}")["version"]
    assert (before["so_far"]["solved"], before["so_far"]["attempts"]) == (1, 3)  # FAILED ones are no evidence
    append(run, encode(record(6)))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo', "utf-8")
    assert data(served, f"version?runs={name}")["version"] != version
    assert data(served, f"runs/{name}")["so_far"]["solved"] == 2
    assert data(served, f"curves?runs={name}")[0]["metrics"] == {"loss": [[1.0, 2.0]]}
    assert data(served, f"curves?runs={name}&metrics=success,reward/mean")[0]["metrics"] == {}


def test_a_run_folder_that_cannot_be_written_is_read_all_the_same(run: Path) -> None:
    (run / NAME).mkdir()  # SQLite cannot open it, whoever asks; root may write anywhere else
    with Index(run) as index:
        assert len(keys(index)) == 4
    shown = runner.invoke(app, ["show", str(run), "--json"])
    assert json.loads(shown.stdout)["total"] == 4


def test_an_index_that_cannot_be_written_is_told_in_words(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tau2rl.view.index.WAIT_SECONDS", 0.05)
    with Index(run) as index:
        assert len(keys(index)) == 4
        held = sqlite3.connect(run / NAME, isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="database is locked"):
            index.update(seconds=1)
        held.close()
        most = index._connection.execute("PRAGMA page_count").fetchone()[0]
        index._connection.execute(f"PRAGMA max_page_count = {most}")  # as on a full disk
        append(run, b"".join(encode(record(n, says="many words " * 50)) for n in range(20, 120)))
        with pytest.raises(UserError, match="full"):
            index.update(seconds=60)
        assert index.page(Query()).total == 4


def test_a_pipeline_as_data(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "p")
    with serving(tmp_path) as served:
        found = {run["folder"]: run for run in data(served, "runs")}
        assert found["01-before-eval"]["above"] == found["p"]["id"]
        shown = data(served, f"runs/{found['p']['id']}")["pipeline"]
        assert [stage["folder"] for stage in shown["stages"]] == ["01-before-eval", "02-grpo", "03-after-eval"]
        assert shown["stages"][1]["says"] == "reward 0.250 → 0.750, 3 steps, 4 of 8 groups useful"
        assert [(each["model"], each["id"]) for each in shown["evaluations"]] == [
            ("before", found["01-before-eval"]["id"]),
            ("after", found["03-after-eval"]["id"]),
        ]
        assert not (tmp_path / "p" / NAME).exists()  # there is nothing to index
        ids = [found[name]["id"] for name in ("01-before-eval", "03-after-eval")]
        tasks = data(served, f"tasks?runs={','.join(ids)}")
        assert tasks["tasks"] == [
            {"task": "mock/create_task_1", "counts": [[0, 2], [2, 2]]},
            {"task": "mock/update_task_1", "counts": [[0, 1], None]},
        ]
        before = data(served, f"version?runs={found['p']['id']}")
        append(tmp_path / "p" / "runs" / "03-after-eval", encode(record(9)))
        assert data(served, f"version?runs={found['p']['id']}") != before  # a pipeline changes with its runs
        assert [row["attempt"] for row in data(served, f"runs/{ids[1]}/attempts?task=mock/create_task_1")] == [0, 1, 9]


def test_a_group_turn_by_turn_with_the_advantage_of_each_turn(tmp_path: Path) -> None:
    """By `mt_gtpo`: groups are of two attempts, numbered through; one did the reference's write, one did nothing."""
    run = make_run(tmp_path / "g")
    config = {"stage": "grpo", "algo": {"estimator": "mt_gtpo"}, "rollout": {"num_samples": 2}, "model": {"init": "m"}}
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    (run / "failures.jsonl").unlink()
    (run / "episodes.jsonl").write_bytes(b"".join(encode(record(n, solved=n != 3)) for n in range(4)))
    with serving(tmp_path) as served:
        (name,) = [each["id"] for each in data(served, "runs")]
        found = data(served, f"runs/{name}/episodes/4/group")
        assert (found["estimator"], [each["attempt"] for each in found["attempts"]]) == ("mt_gtpo", [2, 3])
        good, bad = found["attempts"]
        assert [(step["kind"], step["label"]) for step in good["steps"]] == [("call", "create_task"), ("say", "Done.")]
        assert (len(good["advantages"]), len(bad["advantages"])) == (2, 3)
        # Two members at the first position, normalized +1 and -1, and with them 0.3 of the normalized outcomes. One at the third.
        assert (round(good["advantages"][0], 3), round(bad["advantages"][0], 3)) == (1.3, -1.3)
        assert round(bad["advantages"][2], 3) == -0.3
        spans = [span for span in data(served, f"runs/{name}/episodes/3/tokens")["spans"] if span["mask"]]
        assert [span["advantage"] for span in spans] == good["advantages"]


def test_advantages_are_those_of_the_recipe_that_was_trained_with(tmp_path: Path) -> None:
    """One that takes from the reference's write what the plain table gives for it."""
    recipe = tmp_path / "recipe.json"
    values = {tier.value: -1.0 if tier is Tier.GOLD else 0.0 for tier in Tier}
    write_recipe(recipe, {"values": values, "writes_only": False, "accepted": True})
    run = make_run(tmp_path / "g")
    config = {"stage": "grpo", "algo": {"estimator": "mt_gtpo"}, "rollout": {"num_samples": 2}, "model": {"init": "m"}}
    (run / "config.json").write_text(json.dumps({**config, "reward": {"recipe": str(recipe)}}), "utf-8")
    (run / "failures.jsonl").unlink()
    (run / "episodes.jsonl").write_bytes(b"".join(encode(record(n, solved=n != 1)) for n in range(2)))
    with serving(tmp_path) as served:
        (name,) = [each["id"] for each in data(served, "runs")]
        good, bad = data(served, f"runs/{name}/episodes/1/group")["attempts"]
    assert (round(good["advantages"][0], 3), round(bad["advantages"][0], 3)) == (-0.7, 0.7)


@pytest.mark.slow
def test_a_hundred_thousand_episodes_have_pages_long_before_they_are_all_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "large")
    lines = [encode(record(n, solved=n % 3 == 0)) for n in range(4)]
    (run / "failures.jsonl").unlink()
    with (run / "episodes.jsonl").open("wb") as file:
        for n in range(100_000):
            file.write(lines[n % 4].replace(b'"task_id":"create_task_1"', b'"task_id":"t%d"' % (n // 4)))
        file.write(lines[0][:50])  # a cut last line
    with serving(tmp_path) as served:
        (name,) = [each["id"] for each in data(served, "runs")]
        seconds, left = list[float](), 51
        while left > 50:  # bytes: the cut line stays
            began = time.monotonic()
            found = data(served, f"runs/{name}/episodes?limit=50")
            seconds.append(time.monotonic() - began)
            assert len(found["rows"]) == 50
            assert seconds[1:] or found["total"] < 50_000
            read = data(served, f"version?runs={name}")
            left = read["size"] - read["indexed"]
            time.sleep(0.2)
        found = data(served, f"runs/{name}/episodes?limit=50&sort=turns&offset=90000")
    assert (len(found["rows"]), found["total"]) == (50, 100_000), seconds
    (tmp_path / "seconds.json").write_text(json.dumps(seconds), "utf-8")
