"""The front door, `import tau2rl`:

- it loads nothing until it is used; every public name is there, and pyright sees the same ones;
- `evaluate` takes a policy as an object, its class, a function, a name or a checkpoint, and leaves no run folder;
- its defaults are those of the settings;
- its report is that of `tau2rl eval`; with `output` it leaves the same folder, which can be continued;
- it works where an event loop runs already, as in a notebook;
- a policy is entered and closed; a wrong request is a UserError; a changed plug-in is not resumed;
- `rollout` plays one conversation, and stays a function whatever else is imported.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tau2rl
import tau2rl.rollouts.runner  # a package of the function's name would take its place in `tau2rl` here
from tau2rl import (
    Attempt,
    CallTool,
    ChatCodec,
    Completion,
    EpisodeRecord,
    FinishReason,
    Policy,
    Say,
    ScriptedPolicy,
    Status,
    UserError,
)  # fmt: skip
from tau2rl.config import EvalConfig

CODEC = tau2rl.make_codec()
ONE: dict[str, Any] = {"domains": ["mock"], "split": "base", "ids": ["create_task_1"], "num_samples": 2, "user": "scripted"}
RIGHT = CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"})


def solver(attempt: Attempt) -> Policy:
    return ScriptedPolicy([(RIGHT,), (Say(text="Done."),)], CODEC)


class Polite:
    """Serves all attempts; remembers that it was opened and closed."""

    def __init__(self, codec: ChatCodec) -> None:
        self.codec = codec
        self.events: list[str] = []

    async def __aenter__(self) -> Polite:
        self.events.append("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.events.append("closed")

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        self.events.append(session)
        ids = self.codec.write((Say(text="I am sorry."),))
        return Completion(token_ids=tuple(ids), logprobs=None, finish_reason=FinishReason.STOP)


def test_importing_it_loads_nothing() -> None:
    code = "import sys, tau2rl; print(sorted(m for m in sys.modules if m.startswith(('tau2rl.', 'pydantic', 'tau2.'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    assert sorted(set(tau2rl.__all__)) == sorted(tau2rl.__all__)
    for name in tau2rl.__all__:
        assert getattr(tau2rl, name) is not None
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = tau2rl.nothing


def test_pyright_sees_the_types_of_the_public_names(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(
        "import tau2rl\nfrom tau2rl import EvalReport, Episode\n"
        "async def main(task: tau2rl.TaskRef, env: tau2rl.Env, policy: tau2rl.Policy, codec: tau2rl.ChatCodec) -> None:\n"
        "    report: EvalReport = await tau2rl.evaluate(policy='gold', domains=['mock'])\n"
        "    again: EvalReport = tau2rl.evaluate_sync(policy='gold')\n"
        "    episode: Episode = await tau2rl.rollout(task, env=env, policy=policy, codec=codec)\n"
        "    wrong: int = tau2rl.tasks(['mock'])\n"
        "class Mine:\n"
        "    async def score(self, transcript: tau2rl.Transcript) -> float:\n"
        "        return float('sorry' in transcript.messages[-1].content)\n"
        "class Other:\n"
        "    async def score(self, transcript: str) -> float:\n"
        "        return 0.0\n"
        "mine: tau2rl.Verifier = Mine()\n"
        "other: tau2rl.Verifier = Other()\n"
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)["generalDiagnostics"]
    assert [(d["range"]["start"]["line"], d["rule"]) for d in found if d["severity"] == "error"] == [
        (6, "reportAssignmentType"), (14, "reportAssignmentType"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "solved"), [("gold", 1.0), (solver, 1.0), (Polite, 0.0), (Polite(CODEC), 0.0), ({"kind": "do-nothing"}, 0.0)]
)
def test_a_policy_is_a_name_a_function_a_class_or_an_object(policy: Any, solved: float) -> None:
    seen: list[EpisodeRecord] = []
    report = tau2rl.evaluate_sync(policy=policy, **ONE, on_episode=seen.append)
    assert report.complete and report.pass_at_1 == solved
    assert report.pass_at_1_ci95 is not None and report.pass_at_1_ci95[0] <= solved <= report.pass_at_1_ci95[1]
    assert report.floors == {"mock": {"do_nothing": 0.0, "always_transfer": 0.0}}
    assert sorted(r.attempt.key for r in seen) == ["mock/create_task_1#0", "mock/create_task_1#1"]
    assert list(report.episodes) == seen and report.failures == ()


def test_a_checkpoint_is_sampled_in_this_process(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    tiny = ("local.shape.hidden=16", "local.shape.layers=1", "local.shape.heads=1", "local.shape.head_dim=16")
    sets = [word for setting in ("data.val_fraction=0", "train.batch_size=1", *tiny) for word in ("--set", setting)]
    words = ["sft", "--inline", "--data", "rows.jsonl", "--steps", "1", *sets, "--output", "run"]
    subprocess.run([sys.executable, "-m", "tau2rl", *words], cwd=tmp_path, capture_output=True, check=True)
    limits = {"max_turns": 1, "repairs": 0, "context_tokens": 4096}
    policy = tmp_path / "run" / "checkpoints" / "final"
    report = tau2rl.evaluate_sync(policy=policy, **{**ONE, "num_samples": 1}, limits=limits)
    (record,) = report.episodes
    assert report.pass_at_1 == 0.0 and record.episode.turns[0].logprobs is not None


def test_the_defaults_are_those_of_the_settings() -> None:
    given = {name: p.default for name, p in inspect.signature(tau2rl.evaluate).parameters.items()}
    config = EvalConfig.model_construct()
    assert (given["domains"], given["split"], given["limit"]) == (config.tasks.domains, config.tasks.split, config.tasks.limit)
    assert (given["num_samples"], given["concurrency"]) == (config.rollout.num_samples, config.rollout.concurrency)
    assert given["seed"] == config.seed


def test_no_run_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    tau2rl.evaluate_sync(policy="gold", **ONE)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["scratch"]


def test_with_output_it_leaves_what_the_command_leaves(tmp_path: Path) -> None:
    report = tau2rl.evaluate_sync(policy="gold", **ONE, output=tmp_path / "here")
    assert json.loads((tmp_path / "here" / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    words = ["--policy", "gold", "--protocol", "transcript", "--domains", "mock", "--task-split", "base"]
    words += ["--set", "tasks.ids=[create_task_1]", "--num-samples", "2", "--user-model", "scripted", "--output", "there"]
    subprocess.run([sys.executable, "-m", "tau2rl", "eval", "--inline", *words], cwd=tmp_path, capture_output=True, check=True)
    ours, theirs = (json.loads((tmp_path / run / "environment.json").read_text()) for run in ("here", "there"))
    assert ours["digest"] == theirs["digest"]
    again = tau2rl.evaluate_sync(policy="gold", **ONE, output=tmp_path / "here", resume=True)
    assert len(again.episodes) == 2 and again.pass_at_1 == 1.0
    with pytest.raises(UserError, match="holds a run already"):
        tau2rl.evaluate_sync(policy="gold", **ONE, output=tmp_path / "here")


def test_it_works_where_a_loop_runs_already() -> None:
    async def notebook() -> tuple[float | None, float | None]:
        awaited = await tau2rl.evaluate(policy="gold", **ONE)
        return awaited.pass_at_1, tau2rl.evaluate_sync(policy="gold", **ONE).pass_at_1

    assert asyncio.run(notebook()) == (1.0, 1.0)

    async def wrong() -> None:
        tau2rl.evaluate_sync(policy="gold", domains=["nowhere"])

    with pytest.raises(UserError, match="no such domain `nowhere`"):
        asyncio.run(wrong())


def test_a_policy_is_opened_first_and_closed_last() -> None:
    policy = Polite(CODEC)
    tau2rl.evaluate_sync(policy=policy, **ONE)
    assert policy.events[0] == "opened" and policy.events[-1] == "closed" and policy.events.count("opened") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"policy": "goldd"}, "did you mean `gold`?"),
        ({"policy": 3}, "int is no policy"),
        ({"policy": "gold", "domains": ["retial"]}, "no such domain `retial`"),
        ({"policy": Path("nowhere")}, "nowhere"),
        ({"policy": "gold", "reward": "best"}, "`reward.preset`"),
        ({"policy": "gold", "plugins": ["not_a_module_of_mine"]}, "there is no module `not_a_module_of_mine`"),
        ({"policy": "gold", "limits": {"max_turn": 3}}, "did you mean `limits.max_turns`?"),
    ],
)
def test_a_wrong_request_is_told_in_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tau2rl.evaluate_sync(**{**ONE, **given})
    assert said in str(caught.value)


def test_a_changed_plug_in_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "def term(episode, grade):\n    return {}\n"
    given = {"policy": "gold", "reward": {"preset": "outcome", "terms": [{"fn": "mine_to_change:term", "weight": 0.1}]}}
    (tmp_path / "mine_to_change.py").write_text(source.format("0.5"))
    report = tau2rl.evaluate_sync(**given, **ONE, output="run")
    assert report.episodes[0].score is not None and report.episodes[0].score.shaped == pytest.approx(1.05)
    (tmp_path / "mine_to_change.py").write_text(source.format("0.25"))
    with pytest.raises(UserError, match="mine_to_change:term"):
        tau2rl.evaluate_sync(**given, **ONE, output="run", resume=True)


def test_rollout_plays_one_conversation() -> None:
    (task,) = (t for t in tau2rl.tasks(["mock"], "base") if t.task_id == "create_task_1")

    async def play() -> tau2rl.Episode:
        env = tau2rl.make_env(task, user="scripted")
        return await tau2rl.rollout(task, env=env, policy=solver(Attempt(task=task, index=0, seed=1)), codec=CODEC)

    episode = asyncio.run(play())
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.reward == 1.0
    assert tau2rl.rollouts.runner.plan_attempts([task], num_samples=1, seed=1)  # imported before, and the function still one
    assert inspect.isfunction(tau2rl.rollout)
