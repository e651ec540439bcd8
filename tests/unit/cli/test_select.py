"""`tau2rl select`, pinned here on kept attempts that hold what the verifier will say of them:

- with a verifier of known recall and false accepts it gives what the formulas of `report/break_even.py` give;
- an oracle gives pass@k; a constant gives pass@1 exactly, with no rise; a random one shows no rise;
- pass@1 <= selected@k <= pass@k; precision, recall and false accepts by domain, worked out by hand;
- a verifier gets a transcript without task id, criteria and grade, and code of the user's cannot reach them: not in memory, and
  not by importing tau2 or the tasks;
- consistency takes the majority's end state, logprob the likeliest tokens;
- the judge is asked through litellm's protocol once a conversation, never about the same one twice, sees no criteria, and its
  tokens are counted; an answer that ends in no score is asked for again, and then given up on;
- a learned verifier is fitted on training tasks, frozen with a hash, and never measured on a task that it was fitted on;
- a verifier that is not there, gives no score, or has nothing to go by, is refused with the reason.
"""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.report.break_even import MeasuredTasks, expected_attempts, success_of
from tau2rl.report.report import build_report
from tau2rl.runs.records import encode
from tau2rl.types import (
    Attempt,
    Checks,
    Episode,
    EpisodeRecord,
    FinishReason,
    Grade,
    Message,
    Say,
    Status,
    StopReason,
    TaskRef,
    Transcript,
    Turn,
)
from tau2rl.verify.verifiers import transcript_of
from tests.stubs.openai import OpenAIStub

runner = CliRunner()
VERIFIERS = '''
import gc
from tau2rl import Transcript

def told(transcript: Transcript) -> float:
    """What the episode says that this verifier will say."""
    return float(transcript.messages[-1].content)

class Constant:
    async def score(self, transcript):
        return 0.7

def not_a_score(transcript):
    return 7

def reach(transcript):
    """1 where anything of the task can be got at, by whatever way."""
    found = [one for one in gc.get_objects() if type(one).__name__ in ("Grade", "Checks", "Episode", "EpisodeRecord", "TaskRef")]
    for name in ("tau2", "tau2.registry", "tau2.domains.mock.environment", "tau2rl.env.domain", "tau2rl.env.tasks"):
        try:
            __import__(name)
            found.append(name)
        except ImportError:
            pass
    try:
        import tau2rl
        found.append(tau2rl.tasks("mock"))
    except ImportError:
        pass
    return float(bool(found))
'''


def record(task: str, index: int, *, solved: bool, says: float, domain: str = "mock", **facts: Any) -> EpisodeRecord:
    ref = TaskRef(domain=domain, task_id=task, split="base")
    facts = {"status": Status.COMPLETED, "turns": (), "db_hashes": ("end", None), **facts}
    episode = Episode(
        task=ref, seed=1, stop_reason=StopReason.USER_STOP, token_ids=(),
        messages=(Message(role="user", content="Hello"), Message(role="assistant", content=str(says))),
        grade=Grade(reward=float(solved), checks=Checks(db=(solved,)), reward_basis=("DB",)), **facts,
    )  # fmt: skip
    return EpisodeRecord(schema=2, run="r", attempt=Attempt(task=ref, index=index, seed=1), tries=1, episode=episode, score=None)


def run_folder(path: Path, records: list[EpisodeRecord]) -> Path:
    path.mkdir(exist_ok=True)
    floors = {domain: {"do_nothing": 0.0, "always_transfer": 0.0} for domain in ("mock", "retail")}
    report = build_report(records, planned=[r.attempt for r in records], floors=floors, digest="d")
    (path / "report.json").write_text(json.dumps(report), "utf-8")
    (path / "episodes.jsonl").write_bytes(b"".join(map(encode, records)))
    (path / "config.json").write_text('{"stage": "eval", "chat": {"tokenizer": "bytes"}}', "utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_select.py").write_text(VERIFIERS, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def selected(run: Path, *words: str) -> Any:
    result = runner.invoke(app, ["select", str(run), *words, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def simulated(tasks: int, attempts: int, *, recall: float, false_accepts: float, seed: int = 1) -> list[EpisodeRecord]:
    """Attempts at tasks of all difficulties, which the verifier accepts by chance as often as it should."""
    luck = random.Random(seed)
    out: list[EpisodeRecord] = []
    for task in range(tasks):
        p = luck.betavariate(0.8, 1.97)
        for index in range(attempts):
            solved = luck.random() < p
            accepted = luck.random() < (recall if solved else false_accepts)
            out.append(record(f"t{task}", index, solved=solved, says=float(accepted)))
    return out


@pytest.mark.parametrize(("recall", "false_accepts"), [(0.8, 0.2), (0.5, 0.5)])
def test_a_verifier_of_known_quality_gives_what_the_formulas_give(here: Path, recall: float, false_accepts: float) -> None:
    records = simulated(600, 6, recall=recall, false_accepts=false_accepts)
    shown = selected(run_folder(here / "run", records), "-k", "4", "--verifier", "mine_select:told")
    found = shown["verifiers"]["mine_select:told"]
    solved: dict[str, list[bool]] = {}
    for one in records:
        assert one.episode.grade is not None
        solved.setdefault(one.attempt.task.key, []).append(one.episode.grade.success)
    tasks = MeasuredTasks([(6, sum(marks)) for marks in solved.values()])
    for point in found["curve"]:
        expected = success_of(tasks, point["k"], recall=recall, false_accepts=false_accepts)
        attempts = expected_attempts(tasks, point["k"], recall=recall, false_accepts=false_accepts)
        assert point["selected"]["value"] == pytest.approx(expected, abs=0.025)
        assert point["attempts"] == pytest.approx(attempts, rel=0.03)
        assert point["passed"]["value"] == pytest.approx(success_of(tasks, point["k"]))
    assert found["accepts"]["overall"]["recall"] == pytest.approx(recall, abs=0.04)
    assert found["accepts"]["overall"]["false_accepts"] == pytest.approx(false_accepts, abs=0.03)
    assert found["pass@1"]["value"] <= found["selected@k"]["value"] + 0.02
    low, high = found["selected@k"]["ci95"]
    assert low <= found["selected@k"]["value"] <= high
    rises = found["gain"]["difference"]["ci95"] is not None and found["gain"]["difference"]["ci95"][0] > 0
    assert rises == (recall > false_accepts)  # a useless verifier shows none


def test_an_oracle_gives_pass_at_k_and_a_constant_pass_at_1(here: Path) -> None:
    run = run_folder(here / "run", simulated(40, 4, recall=1, false_accepts=0))
    found = selected(run, "--verifier", "mine_select:told", "--verifier", "mine_select:Constant")["verifiers"]
    oracle, constant = found["mine_select:told"], found["mine_select:Constant"]
    assert oracle["selected@k"]["value"] == pytest.approx(oracle["pass@k"]["value"])
    assert constant["selected@k"]["value"] == pytest.approx(constant["pass@1"]["value"])
    assert constant["gain"]["difference"]["value"] == pytest.approx(0, abs=1e-12)
    shown = runner.invoke(app, ["select", str(run), "--verifier", "mine_select:Constant"])
    assert "mine_select:Constant: no rise over pass@1 is shown" in shown.stdout
    better = runner.invoke(app, ["select", str(run), "--verifier", "mine_select:told"])
    assert "mine_select:told: the chosen attempt is better than any one" in better.stdout


def test_precision_recall_and_false_accepts_by_domain(here: Path) -> None:
    marks = [("mock", "a", True, 0.9), ("mock", "a", False, 0.6), ("mock", "b", True, 0.4), ("mock", "b", False, 0.1)]
    marks += [("retail", "a", True, 0.5), ("retail", "a", True, 0.2)]
    run = run_folder(here / "run", [record(t, i % 2, solved=s, says=v, domain=d) for i, (d, t, s, v) in enumerate(marks)])
    found = selected(run, "--verifier", "mine_select:told")["verifiers"]["mine_select:told"]
    assert {name: (one["precision"], one["recall"], one["false_accepts"]) for name, one in found["accepts"].items()} == {
        "mock": (0.5, 0.5, 0.5), "retail": (1.0, 0.5, None), "overall": (2 / 3, 0.5, 0.5),
    }  # fmt: skip
    # Of two attempts the higher score: a success at each of the three tasks.
    assert (found["pass@1"]["value"], found["selected@k"]["value"]) == pytest.approx((2 / 3, 1.0))
    strict = selected(run, "--verifier", "mine_select:told", "--accept-from", "0.8")["verifiers"]["mine_select:told"]
    assert strict["accepts"]["overall"]["precision"] == 1.0
    assert strict["expected_attempts"] == pytest.approx((1.5 + 2 + 2) / 3)


def test_a_verifier_cannot_reach_the_criteria(here: Path) -> None:
    run = run_folder(here / "run", [record("create_task_1", i, solved=bool(i), says=0.5) for i in range(2)])
    found = selected(run, "--verifier", "mine_select:reach")["verifiers"]["mine_select:reach"]
    assert found["accepts"]["overall"]["accepted_successes"] == found["accepts"]["overall"]["accepted_failures"] == 0
    made = transcript_of(record("create_task_1", 0, solved=True, says=0.5).episode)
    names = {field.name for field in fields(made)}
    assert names == {
        "domain", "domain_policy", "tools", "messages", "tool_kinds", "status", "end_state", "mean_logprob",
    }  # fmt: skip
    assert "create_task_1" not in repr(made).replace(repr(made.tools), "")


def test_what_ends_a_simulation_is_no_word_of_a_user() -> None:
    episode = record("create_task_1", 0, solved=True, says=0.5).episode
    said = (Message(role="user", content="Thanks! ###STOP###"), Message(role="user", content="###TRANSFER###"))
    assert [m.content for m in transcript_of(replace(episode, messages=said)).messages] == ["Thanks!"]


def test_consistency_takes_the_majority_and_logprob_the_likeliest(here: Path) -> None:
    def turns(logprob: float) -> tuple[Turn, ...]:
        said = (Say(text="x"),)
        return (Turn(start=0, end=1, prompt_hash="", logprobs=(logprob,), finish_reason=FinishReason.STOP, actions=said),)

    marks = [(True, "x", -0.1), (False, "y", -0.9), (True, "x", -0.2)]
    records = [
        record("a", i, solved=solved, says=0, db_hashes=(end, None), turns=turns(logprob))
        for i, (solved, end, logprob) in enumerate(marks)
    ]
    found = selected(run_folder(here / "run", records), "--verifier", "consistency", "--verifier", "logprob")["verifiers"]
    assert [point["selected"]["value"] for point in found["consistency"]["curve"]] == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert [point["selected"]["value"] for point in found["logprob"]["curve"]] == pytest.approx([2 / 3, 1.0, 1.0])
    assert found["consistency"]["expected_attempts"] is None  # it takes all of them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verifier", "jury"], "no verifier `jury`"),
        (["--verifier", "judge"], "nobody is named who judges"),
        (["--judgments", "kept"], "it says how to ask a model, and none is named"),
        (["--verifier", "nowhere.json"], "no verifier `nowhere.json`"),
        (["--verifier", "mine_select:nowhere"], "has no `nowhere`"),
        (["--verifier", "mine_select:not_a_score"], "gave 7, and a score is a number from 0 to 1"),
        (["--verifier", "logprob"], "no attempt has log-probabilities"),
        (["-k", "3"], "k = 3, and the run has 2 attempts a task"),
    ],
)
def test_what_cannot_be_is_refused(here: Path, words: list[str], message: str) -> None:
    run = run_folder(here / "run", [record("a", i, solved=True, says=0.5) for i in range(2)])
    result = runner.invoke(app, ["select", str(run), *(["--verifier", "rules"] if "-k" in words else []), *words])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_transcript_of_the_first_kind_still_fits() -> None:
    made = Transcript(domain="retail", domain_policy="...", tools=(), messages=())
    assert (made.status, made.tool_kinds, made.end_state) == (Status.COMPLETED, {}, None)


JUDGED = "The agent did what was asked.\nSCORE: {score}"


def judge_of(server: OpenAIStub, kept: Path) -> list[str]:
    return ["--verifier", "judge", "--judge-model", "openai/j", "--judge-api-base", server.api_base, "--judgments", str(kept)]


def said_score(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """What the attempt says of itself, in percent."""
    shown = json.loads(messages[0]["content"].partition("\n{")[2].join(["{", ""]))
    return JUDGED.format(score=round(100 * float(shown["conversation"][-1]["content"])))


def test_a_judge_is_asked_once_about_what_it_may_see(here: Path) -> None:
    marks = [(True, 0.9), (False, 0.2), (True, 0.8), (False, 0.1), (False, 0.1)]
    run = run_folder(here / "run", [record(f"t{i // 2}", i % 2, solved=s, says=v) for i, (s, v) in enumerate(marks[:4])])
    with OpenAIStub(answer=said_score) as server:
        first = selected(run, *judge_of(server, here / "kept"))
        asked = list(server.bodies)
        again = selected(run, *judge_of(server, here / "kept"))
        assert len(server.bodies) == len(asked) == 4
    assert first["verifiers"]["judge"]["selected@k"]["value"] == 1.0
    assert again["verifiers"] == first["verifiers"]
    assert (first["judge"]["asked"], first["judge"]["cached"], again["judge"]["asked"], again["judge"]["cached"]) == (4, 0, 0, 4)
    assert first["judge"]["prompt_tokens"] > 0 == again["judge"]["prompt_tokens"]
    for body in asked:
        assert body["temperature"] == 0
        shown = body["messages"][0]["content"]
        assert not any(word in shown for word in ("reward", "db_check", "t0", "t1", "evaluation_criteria"))


def test_a_conversation_that_two_attempts_had_is_judged_once(here: Path) -> None:
    run = run_folder(here / "run", [record("t", i, solved=bool(i), says=0.5) for i in range(2)])
    with OpenAIStub(answer=said_score) as server:
        assert selected(run, *judge_of(server, here / "kept"))["judge"]["asked"] == len(server.bodies) == 1


def test_a_judge_without_a_score_is_given_up_on_and_the_answers_before_are_kept(here: Path) -> None:
    run = run_folder(here / "run", [record("t", i, solved=bool(i), says=0.1 * i) for i in range(2)])
    with OpenAIStub(
        answer=lambda messages, tools: "I had rather not say." if "0.1" in messages[0]["content"] else JUDGED.format(score=7)
    ) as server:
        result = runner.invoke(app, ["select", str(run), *judge_of(server, here / "kept")])
        assert result.exit_code == 2
        assert "the judge `openai/j` gave no usable answer in 4 tries: its answer does not end as it was told to" in result.stderr
    assert len(list((here / "kept").rglob("*.json"))) == 1


def test_a_judge_that_says_anything_shows_no_rise(here: Path) -> None:
    run = run_folder(here / "run", simulated(40, 4, recall=0.5, false_accepts=0.5))
    with OpenAIStub(answer=lambda messages, tools: JUDGED.format(score=50)) as server:
        found = selected(run, *judge_of(server, here / "kept"))["verifiers"]["judge"]
        assert found["gain"]["difference"]["value"] == pytest.approx(0, abs=1e-12)
        shown = runner.invoke(app, ["select", str(run), *judge_of(server, here / "kept")]).stdout
    assert "judge: no rise over pass@1 is shown" in shown


def learnable(prefix: str, tasks: int, seed: int) -> list[EpisodeRecord]:
    """Attempts of which a success is sure of its tokens, four times of five."""
    luck, out = random.Random(seed), list[EpisodeRecord]()
    for task in range(tasks):
        for index in range(4):
            solved = luck.random() < 0.4
            sure = solved if luck.random() < 0.8 else not solved
            turn = Turn(
                start=0, end=1, prompt_hash="", logprobs=(-0.1 if sure else -1.5,), finish_reason=FinishReason.STOP,
                actions=(Say(text="x"),),
            )  # fmt: skip
            out.append(record(f"{prefix}{task}", index, solved=solved, says=0.0, turns=(turn,)))
    return out


def test_a_learned_verifier_is_fitted_frozen_and_measured_elsewhere(here: Path) -> None:
    pytest.importorskip("sklearn")
    train, test = run_folder(here / "train", learnable("a", 60, 1)), run_folder(here / "test", learnable("b", 60, 2))
    words = ["select", str(train), "--fit", "v.json", "--verifier", "rules", "--verifier", "logprob", "--allow-held-out"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "fitted on 240 attempts at 60 tasks" in result.stdout
    found = selected(test, "--verifier", "v.json")["verifiers"]["v.json"]
    assert found["gain"]["difference"]["ci95"][0] > 0
    # 4 of 5 successes and 1 of 5 failures look like successes, and a score of .5 tells them apart.
    assert found["accepts"]["overall"]["recall"] == pytest.approx(0.8, abs=0.1)
    assert found["accepts"]["overall"]["false_accepts"] == pytest.approx(0.2, abs=0.1)
    assert found["expected_attempts"] < 4  # no signal needs the other attempts
    leaked = runner.invoke(app, ["select", str(train), "--verifier", "v.json"])
    assert leaked.exit_code == 2 and "was fitted on 60 tasks" in leaked.stderr
    changed = json.loads((here / "v.json").read_text("utf-8"))
    (here / "v.json").write_text(json.dumps({**changed, "intercept": 9.0}), "utf-8")
    broken = runner.invoke(app, ["select", str(test), "--verifier", "v.json"])
    assert broken.exit_code == 2 and "is not what was fitted" in broken.stderr


def test_what_cannot_be_fitted_is_refused(here: Path) -> None:
    pytest.importorskip("sklearn")
    run = run_folder(here / "run", [record("a", i, solved=True, says=0.5) for i in range(2)])
    result = runner.invoke(app, ["select", str(run), "--fit", "v.json", "--verifier", "rules", "--allow-held-out"])
    assert result.exit_code == 2 and "every attempt ended alike" in result.stderr
    assert not (here / "v.json").exists()
