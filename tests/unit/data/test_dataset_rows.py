"""From an episode of the real `mock` domain to its row, pinned here:

- a turn that could not be read stays in the history and is not learned;
- the tokens end with the last sampled one;
- what counts as the same actions, and what as having changed something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tau2rl.chat import make_codec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import ChatConfig, PolicyConfig, TasksConfig
from tau2rl.env.gold import gold_script
from tau2rl.env.tasks import changed_something, select
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.recipes.dataset import signature
from tau2rl.recipes.dataset_rows import Source, make_source, row_of
from tau2rl.runs.records import SCHEMA
from tau2rl.types import Attempt, Completion, Episode, EpisodeRecord, FinishReason, Say, TaskRef
from tests.play import attempt, play

CHAT = ChatConfig(protocol="native", tokenizer="bytes")
BROKEN = "<tool_call>\n{oops\n</tool_call><|im_end|>"
BYTES = ByteTokenizer()


def tasks() -> dict[str, TaskRef]:
    """Kind -> a synthesised task of that one request."""
    found = select(TasksConfig(domains=("mock",), split="synth-train", limit=60))
    return {ref.task_id.split("-", 3)[3]: ref for ref in found}


class Stumbles:
    """Samples one turn that nobody can read, then plays its script."""

    def __init__(self, script: ScriptedPolicy) -> None:
        self._script = script
        self._stumbled = False

    async def complete(self, prompt_ids: Sequence[int], **options: Any) -> Completion:
        if self._stumbled:
            return await self._script.complete(prompt_ids, **options)
        self._stumbled = True
        return Completion(token_ids=tuple(BYTES.encode(BROKEN)), logprobs=None, finish_reason=FinishReason.STOP)


def episode_of(ref: TaskRef, *, stumbles: bool = False) -> Episode:
    codec = make_codec(CHAT)
    script = ScriptedPolicy(gold_script(ref), codec)
    return play(ref=ref, policy=Stumbles(script) if stumbles else script, codec=codec)


def row(episode: Episode) -> dict[str, Any]:
    record = EpisodeRecord(schema=SCHEMA, run="r", attempt=attempt(episode.task), tries=1, episode=episode, score=None)
    return row_of(record, source())


def source() -> Source:
    return make_source(Path("run"), "r", PolicyConfig(kind="gold"), CHAT, fingerprint="f" * 16, digest="d" * 16)


def test_a_turn_that_could_not_be_read_is_not_learned() -> None:
    ref = tasks()["update"]
    episode = episode_of(ref, stumbles=True)
    assert episode.grade is not None and episode.grade.success
    written = row(episode)
    assert BROKEN in BYTES.decode(written["token_ids"])
    learned = [token for token, on in zip(written["token_ids"], written["loss_mask"], strict=True) if on]
    clean = row(episode_of(ref))
    assert learned == [token for token, on in zip(clean["token_ids"], clean["loss_mask"], strict=True) if on]


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
    metadata = row_of(record, source())["metadata"]
    assert (metadata["id"], metadata["kind"], metadata["chat"]) == (f"{ref.key}#3", "create", "f" * 16)
