"""Episodes of a model that thinks, played on tau2's mock domain with a template that drops earlier thoughts as Qwen3's.

- `keep`: thoughts stay where they were sampled; the record is what it was before there were thoughts
- a thought that reaches `chat.thinking_tokens` is closed with tokens that are not trained on, and the turn goes on
- `per-turn`: each prompt is what the template itself writes, and the samples hold every prompt as it was sent
- nobody but the model sees a thought: a fact that it only thinks was not said
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tau2rl
from tau2rl.chat.native import NativeCodec, system_prompt
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import LimitsConfig
from tau2rl.data.encoding import pack
from tau2rl.env.domain import domain
from tau2rl.hashing import prefix_hash
from tau2rl.rollouts.episode import run_episode
from tau2rl.rollouts.thinking import ThinkingBudget
from tau2rl.runs import records
from tau2rl.types import CallTool, Completion, Episode, FinishReason, Say, Status, Think, Thinking, TrainingSample
from tests.play import CREATE, attempt, mock_env

BYTES = ByteTokenizer()
CALL = '<tool_call>\n{"name": "create_task", "arguments": {"user_id": "user_1", "title": "Important Meeting"}}\n</tool_call>'
ASSISTANT, OPEN, CLOSE, END = "<|im_start|>assistant\n", "<think>\n", "\n</think>\n\n", "<|im_end|>"
SCRIPT = [("The user wants a task.", "Which title?"), ("I have all I need.", CALL), ("It is done.", "The task is created.")]


class Thinker:
    """A model with a thought and an answer for each turn. It reads its prompt: what it has begun to say, it goes on with."""

    def __init__(self, script: Sequence[tuple[str, str]] = SCRIPT) -> None:
        self.script = script
        self.prompts: list[list[int]] = []
        self.turn = -1

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """The rest of the turn, cut at `max_tokens`."""
        self.prompts.append(list(prompt_ids))
        begun = BYTES.decode(prompt_ids).rpartition(ASSISTANT)[2]
        self.turn += not begun
        thought, answer = self.script[min(self.turn, len(self.script) - 1)]
        whole = f"{OPEN}{thought}{CLOSE}{answer}{END}" if thought else answer + END
        closed = begun.partition(CLOSE)[1]
        rest = answer + END if closed and not whole.startswith(begun) else whole[len(begun) :]
        ids = BYTES.encode(rest)
        kept = tuple(ids[:max_tokens])
        reason = FinishReason.STOP if len(kept) == len(ids) else FinishReason.LENGTH
        return Completion(token_ids=kept, logprobs=tuple(-0.5 for _ in kept), finish_reason=reason)


def played(
    thinking: Thinking, *, budget: int | None = None, turn: int = 4096, script: Sequence[tuple[str, str]] = SCRIPT
) -> tuple[Episode, Thinker]:
    policy = Thinker(script)
    limit = None if budget is None else ThinkingBudget(thinking_tokens=budget, turn_tokens=turn)
    codec = NativeCodec(BYTES, thinking=thinking)
    limits = LimitsConfig(context_tokens=1_000_000)
    return asyncio.run(
        run_episode(attempt(CREATE), env=mock_env(CREATE), policy=policy, codec=codec, limits=limits, budget=limit)
    ), policy


def learned(sample: TrainingSample) -> list[str]:
    spans = [
        [t for t, bit in zip(sample.token_ids[a:b], sample.loss_mask[a:b], strict=True) if bit] for a, b in sample.turn_spans
    ]
    return [BYTES.decode(ids) for ids in spans]


def test_thoughts_stay_where_they_were_sampled() -> None:
    episode, policy = played("keep")
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert [turn.actions[0] for turn in episode.turns] == [Think(text=thought) for thought, _ in SCRIPT]
    (sample,) = pack(episode)
    assert learned(sample) == [f"{OPEN}{thought}{CLOSE}{answer}{END}" for thought, answer in SCRIPT]
    assert [turn.kept for turn in episode.turns] == [None] * 3
    assert [list(episode.token_ids[: turn.start]) for turn in episode.turns] == policy.prompts
    assert [turn.thought_tokens for turn in episode.turns] == [len(f"<think>\n{thought}\n</think>") for thought, _ in SCRIPT]
    assert episode.thought_tokens == sum(turn.thought_tokens for turn in episode.turns)


def test_a_thought_is_closed_at_its_budget_and_the_turn_goes_on() -> None:
    long = [("x" * 500, "Which title?"), *SCRIPT[1:]]
    episode, policy = played("keep", budget=40, script=long)
    assert episode.grade is not None and episode.grade.success
    first = episode.turns[0]
    assert first.actions == (Think(text="x" * 32), Say(text="Which title?")) and first.finish_reason is FinishReason.STOP
    assert first.thought_tokens == 40 == len(OPEN) + 32
    assert first.forced is not None
    start, end = first.forced
    assert BYTES.decode(episode.token_ids[start:end]) == CLOSE
    assert policy.prompts[1] == [*policy.prompts[0], *episode.token_ids[first.start : end]]
    (sample,) = pack(episode)
    assert learned(sample)[0] == f"{OPEN}{'x' * 32}Which title?{END}"
    assert sample.loss_mask[start:end] == (0,) * len(CLOSE)
    assert sample.logprobs == tuple(-0.5 * bit for bit in sample.loss_mask)
    assert episode.sampled_tokens == sum(sample.loss_mask)


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    free, _ = played("keep")
    bounded, policy = played("keep", budget=60)
    assert bounded.token_ids == free.token_ids and pack(bounded) == pack(free)
    assert [turn.forced for turn in bounded.turns] == [None] * 3
    assert len(policy.prompts) > 3  # a turn longer than the budget was sampled in two calls


def test_the_budget_of_a_thought_is_within_that_of_the_turn() -> None:
    episode, _ = played("keep", budget=1000, turn=30)
    assert (episode.status, len(episode.turns), episode.turns[0].end - episode.turns[0].start) == (Status.TRUNCATED, 1, 30)
    assert episode.turns[0].thought_tokens == 30 and episode.turns[0].forced is None


def test_each_turn_is_sampled_behind_what_the_template_writes() -> None:
    episode, policy = played("per-turn", script=[SCRIPT[0], SCRIPT[1], SCRIPT[2], ("Nothing to do.", "Anything else?")])
    loaded = domain("mock")
    rows: list[dict[str, Any]] = [{"role": "system", "content": system_prompt(loaded.policy)}]
    prompts: list[str] = []
    for message in episode.messages:
        if message.role == "assistant" and len(rows) > 2:
            prompts.append(BYTES.render(rows, loaded.tools, add_generation_prompt=True, variables={"enable_thinking": True}))
        calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
        rows.append(
            {"role": message.role, "content": message.content, "tool_calls": calls, "reasoning_content": message.reasoning}
        )
    assert [BYTES.decode(prompt) for prompt in policy.prompts] == prompts
    assert len(prompts) == len(episode.turns) >= 3


def test_every_prompt_is_in_a_sample_as_it_was_sent() -> None:
    episode, policy = played("per-turn")
    samples = pack(episode)
    # The user's message took the first thought out; the tool's result took nothing out.
    assert [turn.kept is not None for turn in episode.turns] == [False, True, False]
    assert [len(sample.turn_spans) for sample in samples] == [1, 2]
    assert [s.token_ids[:start] for s in samples for start, _ in s.turn_spans] == [tuple(prompt) for prompt in policy.prompts]
    assert [text for sample in samples for text in learned(sample)] == [f"{OPEN}{t}{CLOSE}{a}{END}" for t, a in SCRIPT]
    assert sum(sum(sample.loss_mask) for sample in samples) == episode.sampled_tokens
    assert SCRIPT[0][0] not in BYTES.decode(samples[1].token_ids)


def test_a_record_of_it_comes_back_and_a_damaged_one_is_found() -> None:
    episode, _ = played("per-turn", budget=20)
    record = records.EpisodeRecord(schema=records.SCHEMA, run="r", attempt=attempt(), tries=1, episode=episode, score=None)
    line = records.encode(record)
    assert records.decode(line) == record
    values = json.loads(line)
    assert values["schema"] == 2 and values["episode"]["turns"][1]["kept"] == episode.turns[1].kept
    values["episode"]["turns"][1]["kept"] -= 1
    with pytest.raises(ValueError, match="turn 1 was sampled behind another prompt"):
        pack(records.decode(json.dumps(values).encode()).episode)


def test_a_line_from_before_there_were_thoughts_is_read_as_it_was() -> None:
    episode, _ = played("keep")
    values = json.loads(
        records.encode(records.EpisodeRecord(schema=1, run="r", attempt=attempt(), tries=1, episode=episode, score=None))
    )
    for turn in values["episode"]["turns"]:
        for name in ("kept", "forced", "thought_tokens"):
            del turn[name]
    read = records.decode(json.dumps(values).encode()).episode
    assert pack(read) == pack(episode) and read.thought_tokens == 0
    assert [prefix_hash(read.token_ids[: t.start]) for t in read.turns] == [t.prompt_hash for t in read.turns]


FACTS = ("The agent acknowledged the previous context", "The agent confirmed the task status was updated successfully")
UPDATE = '<tool_call>\n{"name": "update_task_status", "arguments": {"task_id": "task_2", "status": "completed"}}\n</tool_call>'


@pytest.mark.parametrize("thinking", ["keep", "per-turn"])
def test_what_is_thought_is_not_said(thinking: str, tmp_path: Path) -> None:
    facts = ". ".join(FACTS) + ". MARK"

    def report(name: str, *script: tuple[str, str]) -> tuple[Any, str]:
        found = asyncio.run(
            tau2rl.evaluate(
                policy=lambda attempt: Thinker(script),
                codec={"protocol": "native", "tokenizer": "bytes", "thinking": thinking},
                domains=["mock"],
                split="base",
                ids=["mock/update_task_with_initialization_data"],
                num_samples=1,
                user="scripted",
                limits={"context_tokens": 100_000},
                output=tmp_path / name,
            )
        )
        return found, (tmp_path / name / "episodes.jsonl").read_text("utf-8")

    _, thought = report("thought", (facts, UPDATE), (facts, "Done."))
    _, said = report("said", ("Hm.", UPDATE), ("Hm.", facts))
    grades = [json.loads(line)["episode"]["grade"] for line in (thought, said)]
    assert [grade["reward"] for grade in grades] == [0.0, 1.0]
    assert [grade["checks"]["communicate"] for grade in grades] == [[False, False], [True, True]]
    episode = json.loads(thought)["episode"]
    assert "MARK" not in json.dumps(episode["trajectory"])  # what tau2 and its user have seen
    assert episode["turns"][1]["actions"][0] == {"thought": facts}
    report_json = json.loads((tmp_path / "thought" / "report.json").read_text("utf-8"))
    assert 0 < report_json["tokens"]["thought"] < report_json["tokens"]["sampled"]


def test_calls_behind_a_thought_are_calls() -> None:
    episode, _ = played("keep")
    call = CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"})
    assert episode.turns[1].actions == (Think(text=SCRIPT[1][0]), call)
