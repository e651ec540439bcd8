"""From an episode of the real `mock` domain to its row, pinned here:

- a turn that could not be read stands in the row as it was sampled, before the request that it earned, and is not learned:
  neither as tokens nor rendered, in every protocol, whether it is the first turn, one of several in a row, or the last;
- so does a turn that was cut off by its token limit;
- rendered from its messages the row has the very tokens of the conversation that took place;
- (learning size) `rft-filter` and `sft` train on a repaired conversation, and on nothing that was malformed;
- the tokens end with the last sampled one;
- what counts as the same actions, and what as having changed something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.chat import make_codec
from tau2rl.chat.tokenizers import ByteTokenizer, load_tokenizer
from tau2rl.cli import app
from tau2rl.config import ChatConfig, EvalConfig, PolicyConfig, TasksConfig, build
from tau2rl.data.encoding import encode_rows, pack
from tau2rl.data.jsonl import read_row_file
from tau2rl.env.tasks import changed_something, gold_script, select
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.recipes.dataset import SourceRun, dataset_row, make_source, signature
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.provenance import environment
from tau2rl.runs.records import SCHEMA
from tau2rl.types import Attempt, Completion, Episode, EpisodeRecord, FinishReason, Message, Say, Score, TaskRef, TrainingSample
from tests.play import WIDE, attempt, play
from tests.unit.rollout.test_thinking import SCRIPT, played

CHAT = ChatConfig(protocol="native", tokenizer="bytes")
BROKEN = "<tool_call>\n{oops\n</tool_call><|im_end|>"
BYTES = ByteTokenizer()


def tasks() -> dict[str, TaskRef]:
    """Kind -> a synthesised task of that one request."""
    found = select(TasksConfig(domains=("mock",), split="synth-train", limit=60))
    return {ref.task_id.split("-", 3)[3]: ref for ref in found}


class Stumbles:
    """Samples something that nobody can read in the turns `at`, and plays its script in the others."""

    def __init__(self, script: ScriptedPolicy, at: Sequence[int], text: str = BROKEN, reason: str = "stop") -> None:
        self._script = script
        self._at = at
        self._text = text
        self._reason = FinishReason(reason)
        self._turn = -1

    async def complete(self, prompt_ids: Sequence[int], **options: Any) -> Completion:
        self._turn += 1
        if self._turn not in self._at:
            return await self._script.complete(prompt_ids, **options)
        return Completion(token_ids=tuple(BYTES.encode(self._text)), logprobs=None, finish_reason=self._reason)


def episode_of(
    ref: TaskRef, *, at: Sequence[int] = (), text: str = BROKEN, reason: str = "stop", chat: ChatConfig = CHAT, repairs: int = 2
) -> Episode:
    codec = make_codec(chat)
    policy = Stumbles(ScriptedPolicy(gold_script(ref), codec), at, text, reason)
    return play(ref=ref, policy=policy, codec=codec, limits=WIDE.model_copy(update={"repairs": repairs}))


def row(episode: Episode, chat: ChatConfig = CHAT) -> dict[str, Any]:
    record = EpisodeRecord(schema=SCHEMA, run="r", attempt=attempt(episode.task), tries=1, episode=episode, score=None)
    return dataset_row(record, source(chat))


def source(chat: ChatConfig = CHAT) -> SourceRun:
    return make_source(Path("run"), "r", PolicyConfig(kind="gold"), chat, fingerprint="f" * 16, digest="d" * 16)


def rendered(written: dict[str, Any]) -> TrainingSample:
    """The row without its tokens, as a checkpoint of the same template would render it."""
    messages = {key: value for key, value in written.items() if key not in ("token_ids", "loss_mask")}
    (sample,) = encode_rows([("row", messages)], BYTES, max_tokens=1_000_000).samples
    return sample


def test_a_turn_that_could_not_be_read_is_not_learned() -> None:
    ref = tasks()["update"]
    episode = episode_of(ref, at=[0])
    assert episode.grade is not None and episode.grade.success
    written = row(episode)
    assert BROKEN in BYTES.decode(written["token_ids"])
    learned = [token for token, on in zip(written["token_ids"], written["loss_mask"], strict=True) if on]
    clean = row(episode_of(ref))
    assert learned == [token for token, on in zip(clean["token_ids"], clean["loss_mask"], strict=True) if on]


@pytest.mark.parametrize("at", [[0], [1], [0, 1], [1, 3]], ids=str)
def test_rendered_it_is_the_conversation_that_took_place(at: list[int]) -> None:
    written = row(episode_of(tasks()["update_ask"], at=at))
    lost = [i for i, message in enumerate(written["messages"]) if message.get("step_loss_mask") == 0]
    assert len(lost) == len(at)
    for i in lost:
        assert written["messages"][i] == {"role": "assistant", "content": BROKEN.removesuffix("<|im_end|>"), "step_loss_mask": 0}
        assert written["messages"][i + 1]["content"].startswith("FORMAT ERROR (bad_json): ")
    sample = rendered(written)
    assert (list(sample.token_ids), list(sample.loss_mask)) == (written["token_ids"], written["loss_mask"])


def test_a_malformed_turn_that_was_never_repaired_ends_the_row() -> None:
    written = row(episode_of(tasks()["update_ask"], at=[1, 2], repairs=1))
    first, second = (i for i, message in enumerate(written["messages"]) if message.get("step_loss_mask") == 0)
    assert (second, first) == (len(written["messages"]) - 1, second - 2)
    sample = rendered(written)
    assert list(sample.token_ids) == written["token_ids"][: len(sample.token_ids)] and sum(sample.loss_mask) == sum(
        written["loss_mask"]
    )


@pytest.mark.parametrize("text", ["I will gladly", BROKEN.removesuffix("</tool_call><|im_end|>")], ids=["readable", "not"])
def test_a_turn_that_was_cut_off_is_not_learned(text: str) -> None:
    written = row(episode_of(tasks()["update_ask"], at=[1], text=text, reason="length"))
    assert written["messages"][-1] == {"role": "assistant", "content": text, "step_loss_mask": 0}
    size = len(BYTES.encode(text))
    assert written["loss_mask"][-size:] == [0] * size and 1 in written["loss_mask"][:-size]
    assert list(rendered(written).token_ids) == written["token_ids"][: len(rendered(written).token_ids)]


@pytest.mark.parametrize("protocol", ["cookbook", "transcript"])
def test_other_protocols_keep_it_as_it_was_sampled(protocol: str) -> None:
    chat = ChatConfig.model_validate({"protocol": protocol, "tokenizer": None if protocol == "transcript" else "bytes"})
    text = "Just words." if protocol == "cookbook" else "not a line of JSON\n"
    written = row(episode_of(tasks()["update_ask"], at=[1], text=text, chat=chat), chat)
    (lost,) = [i for i, message in enumerate(written["messages"]) if message.get("step_loss_mask") == 0]
    assert written["messages"][lost]["content"] == text.removesuffix("\n")
    assert written["messages"][lost + 1]["content"].startswith("FORMAT ERROR (")
    turns = [message for message in written["messages"][2:] if message["role"] == "assistant"]
    assert len(rendered(written).turn_spans) == len(turns) - 1


def test_a_user_who_speaks_of_format_errors_is_no_repair_request() -> None:
    ref = tasks()["update_ask"]
    episode = episode_of(ref, at=[1])
    said = Message(role="user", content="I get FORMAT ERROR (bad_json) on my screen.")
    messages = (episode.messages[0], said, *episode.messages[2:])
    written = row(replace(episode, messages=messages))
    (lost,) = [i for i, message in enumerate(written["messages"]) if message.get("step_loss_mask") == 0]
    assert lost > 3


def test_a_repaired_conversation_is_trained_on(tmp_path: Path) -> None:
    values = {"policy": {"kind": "gold"}, "chat": CHAT.model_dump(), "user": {"kind": "scripted"}, "tasks": {"domains": ["mock"]}}
    config = build(EvalConfig, values)
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    solved = Score(task=1.0, partial=1.0, shaped=1.0, components={})
    with RunFolder.open(run) as folder:
        folder.write_environment(environment(config, {}, {"chat": "another sampler's", "agent": "it stumbles"}))
        for ref in (tasks()["update"], tasks()["create"]):
            episode = episode_of(ref, at=[0])
            folder.append(EpisodeRecord(schema=SCHEMA, run="r", attempt=attempt(ref), tries=1, episode=episode, score=solved))
    invoke("rft-filter", "--from", run, "--output", tmp_path / "rft", "--inline")
    settings = ["local.shape.hidden=16", "local.shape.layers=1", "local.shape.heads=1", "local.shape.head_dim=8"]
    settings += ["local.shape.vocab_size=400", "train.steps=30", "train.lr=0.01", "data.val_fraction=0"]
    rows = tmp_path / "rft" / "sft.jsonl"
    invoke("sft", "--data", rows, "--output", tmp_path / "sft", "--inline", *(w for each in settings for w in ("--set", each)))
    report = read_json(tmp_path / "sft" / "report.json")
    tokenizer = load_tokenizer(str(tmp_path / "sft" / "checkpoints" / "final"))
    samples = encode_rows(read_row_file(rows), tokenizer, max_tokens=100_000).samples
    assert (report["rows"]["used"], report["rows"]["rendered"], report["rows"]["dropped"]) == (2, 2, 0)
    assert report["rows"]["assistant_tokens"] == sum(sum(sample.loss_mask) for sample in samples)
    for sample in samples:
        assert BROKEN in tokenizer.decode(sample.token_ids)
        assert all("oops" not in tokenizer.decode(sample.token_ids[start:end]) for start, end in sample.turn_spans)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert losses[-1] < losses[0] / 2


def invoke(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


def test_the_tokens_end_with_the_last_sampled_one() -> None:
    episode = episode_of(tasks()["create"])
    longer = replace(episode, token_ids=(*episode.token_ids, *BYTES.encode("more")))  # a prompt that was never answered
    for one in (episode, longer):
        written = row(one)
        assert len(written["token_ids"]) == len(written["loss_mask"]) == episode.turns[-1].end
        assert written["loss_mask"][-1] == 1


def test_an_episode_without_tokens_is_a_row_of_messages() -> None:
    written = row(replace(episode_of(tasks()["create"]), token_ids=()))
    assert "token_ids" not in written and written["messages"][0]["role"] == "system"


def test_other_words_are_the_same_actions_and_other_arguments_are_not() -> None:
    ref = tasks()["update_ask"]
    asked, *rest = gold_script(ref)
    same = play(((Say(text="Which one?"),), *rest), ref=ref)
    assert signature(play((asked, *rest), ref=ref)) == signature(same)
    assert signature(play(tuple(rest), ref=ref)) != signature(same)
    assert signature(play(gold_script(ref, noise_prob=1.0, seed=1), ref=ref)) != signature(same)


def test_looking_up_changes_nothing_and_writing_does() -> None:
    looked = play(gold_script(tasks()["list_named"]), ref=tasks()["list_named"])
    assert looked.grade is not None and looked.grade.success
    assert not changed_something(looked)
    assert changed_something(play(gold_script(tasks()["update_named"]), ref=tasks()["update_named"]))
    by_user = {"role": "user", "tool_calls": [{"name": "toggle_airplane_mode", "arguments": {}}]}
    assert changed_something(replace(looked, trajectory=(*looked.trajectory, by_user)))


def test_an_attempt_is_named_by_task_and_number() -> None:
    ref = tasks()["create"]
    record = EpisodeRecord(
        schema=SCHEMA, run="r", attempt=Attempt(task=ref, index=3, seed=1), tries=1, episode=episode_of(ref), score=None
    )
    metadata = dataset_row(record, source())["metadata"]
    assert (metadata["id"], metadata["kind"], metadata["chat"]) == (f"{ref.key}#3", "create", "f" * 16)


@pytest.mark.parametrize("thinking", ["keep", "per-turn"])
def test_rows_keep_the_thoughts_and_are_learned_as_they_were_sampled(thinking: Any) -> None:
    episode, _ = played(thinking)
    chat = ChatConfig(protocol="native", tokenizer="bytes", thinking=thinking)
    written = row(episode, chat)
    thoughts = [message.get("reasoning_content") for message in written["messages"] if message["role"] == "assistant"]
    assert thoughts == [None, *(thought for thought, _ in SCRIPT)]
    assert not any("thinking" in message for message in written["messages"])
    messages = {key: value for key, value in written.items() if key not in ("token_ids", "loss_mask")}
    again = encode_rows([("row", messages)], BYTES, max_tokens=1_000_000, chat=chat)
    assert again.samples == tuple(replace(sample, logprobs=None) for sample in pack(episode))
    assert ("token_ids" in written) == (thinking == "keep")
    if thinking == "keep":
        assert tuple(written["token_ids"]) == again.samples[0].token_ids
        assert tuple(written["loss_mask"]) == again.samples[0].loss_mask
