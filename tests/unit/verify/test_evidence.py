"""Episodes that user or task spoiled leave training where the settings say so, pinned here through everything that asks:

- the dataset of `rft-filter`, a lucky success included, and the reason stands in `dropped.jsonl`;
- the loss and the mean of a group, in the local trainer, on a slime sample and in the viewer, alike;
- without the setting, and for a fault that it does not name, nothing changes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.cli import app
from tau2rl.config import GrpoConfig, RewardConfig, build
from tau2rl.reward.presets import spec_from
from tau2rl.reward.score import score_episode
from tau2rl.rollouts.runner import Outcome
from tau2rl.runs.records import encode
from tau2rl.slime.samples import SampleMetadata
from tau2rl.train.group import score_group
from tau2rl.types import Attempt, Episode, EpisodeRecord, Fault, Message
from tau2rl.verify.blame import excluded
from tau2rl.view.group import advantages
from tests.contract.slime_episodes import ASK, DONE, RIGHT, WRONG
from tests.play import CREATE, attempt, play

FLIP = "Of course! How may I assist you with this today?"
SPEC = spec_from(RewardConfig(preset="outcome"), max_turns=100, domains=["mock"])


@pytest.fixture(scope="module")
def group() -> tuple[Episode, ...]:
    """A success, a failure, a lucky success behind a user who spoke as the agent, and a failure behind such a one."""
    codec = NativeCodec(ByteTokenizer())
    good, bad = play((ASK, RIGHT, DONE), ref=CREATE, codec=codec), play((ASK, WRONG, DONE), ref=CREATE, codec=codec)
    assert (good.solved, bad.solved) == (True, False)
    return good, bad, spoil(good), spoil(bad)


def spoil(episode: Episode) -> Episode:
    """The same with one more message of the user's, as the agent and tau2 saw it."""
    return replace(
        episode,
        messages=(*episode.messages, Message(role="user", content=FLIP)),
        trajectory=(*episode.trajectory, {"role": "user", "content": FLIP}),
    )


def grpo(**algo: Any) -> GrpoConfig:
    given = {"model": {"init": "m"}, "tasks": {"domains": ["mock"]}, "algo": {"estimator": "dr_grpo", **algo}}
    return build(GrpoConfig, given)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [((), [0.5, -0.5, 0.5, -0.5]), (("user",), [0.5, -0.5, None, None]), (("task",), [0.5, -0.5, 0.5, -0.5])],
)
def test_both_trainers_and_the_viewer_leave_out_the_same(
    group: tuple[Episode, ...], faults: tuple[str, ...], expected: list[float | None]
) -> None:
    config = grpo(exclude_faults=faults)
    wanted = [None if value is None else (value,) for value in expected]
    trained = score_group(CREATE, group, config, SPEC)
    assert list(trained.advantages) == wanted
    assert len(trained.trajectories()) == sum(value is not None for value in expected)
    records = [
        EpisodeRecord(schema=2, run="r", attempt=attempt(index=i), tries=1, episode=e, score=score_episode(e, SPEC))
        for i, e in enumerate(group)
    ]
    rows = [{"id": i, "status": r.episode.status.value, "turns": len(r.episode.turns), "score": r.score and r.score.shaped}
            for i, r in enumerate(records)]  # fmt: skip
    assert advantages(rows, config.algo, config.reward, load=lambda row: records[row["id"]]) == wanted
    samples = [SampleMetadata.of(Outcome(attempt=r.attempt, episode=r.episode), r.score, algo=config.algo) for r in records]
    assert [sample.evidence for sample in samples] == [value is not None for value in expected]
    assert [sample.score is None for sample in samples] == [value is None for value in expected]


def test_a_baseline_without_the_spoiled_success_is_another_one(group: tuple[Episode, ...]) -> None:
    good, bad, lucky, _ = group
    kept = score_group(CREATE, (good, bad, bad, lucky), grpo(), SPEC).advantages
    left_out = score_group(CREATE, (good, bad, bad, lucky), grpo(exclude_faults=("user",)), SPEC).advantages
    assert (kept[0], left_out[0]) == ((0.5,), (pytest.approx(2 / 3),))


@pytest.mark.parametrize(("faults", "rows", "reason"), [(("user",), 1, "left out, user: role_flip"), ((), 2, "not solved")])
def test_an_rft_set_is_without_lucky_successes(
    tmp_path: Path, group: tuple[Episode, ...], faults: tuple[str, ...], rows: int, reason: str
) -> None:
    source = tmp_path / "played"
    source.mkdir()
    tasks = [replace(CREATE, split="base")] * 4
    records = [
        EpisodeRecord(
            schema=2, run="r", attempt=Attempt(task=t, index=i, seed=1), tries=1, episode=e, score=score_episode(e, SPEC)
        )
        for i, (t, e) in enumerate(zip(tasks, group, strict=True))
    ]
    (source / "episodes.jsonl").write_bytes(b"".join(map(encode, records)))
    (source / "config.json").write_text(json.dumps({"stage": "eval", "chat": {"tokenizer": "bytes"}}), "utf-8")
    (source / "environment.json").write_text(json.dumps({"schema": 2, "digest": "d", "identity": {"chat": "c"}}), "utf-8")
    words = [
        "--from",
        source,
        "--output",
        tmp_path / "kept",
        "--inline",
        "--set",
        "keep.dedupe=false",
        "--set",
        "allow_held_out=true",
    ]
    words += ["--set", f"keep.exclude_faults={json.dumps(faults)}"]
    result = CliRunner().invoke(app, ["rft-filter", *map(str, words)])
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "kept" / "report.json").read_text("utf-8"))
    assert report["solved"] == 2  # the raw count says what tau2 said
    assert len((tmp_path / "kept" / "sft.jsonl").read_text("utf-8").splitlines()) == rows
    dropped = [json.loads(line)["reason"] for line in (tmp_path / "kept" / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert reason in dropped and len(dropped) == 4 - rows


def test_only_what_user_or_task_did_is_left_out(group: tuple[Episode, ...]) -> None:
    found = excluded(group[2], ("user",))
    assert found is not None and (found.fault, found.name) == (Fault.USER, "role_flip")
    assert excluded(group[0], ("user", "task")) is None
    assert excluded(group[1], ("user", "task")) is None  # the agent's own failure stays
