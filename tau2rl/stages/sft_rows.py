"""An episode as a dataset row: OpenAI messages in the chat protocol of its run, and its tokens as they were sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.bench.tasks import kind_of
from tau2rl.chat import make_codec, pack
from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.native import conversation
from tau2rl.config import ChatConfig, PolicyConfig
from tau2rl.types import Episode, EpisodeRecord, Opening


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One run whose episodes are used: `Source(path=Path("outputs/eval/x"), policy="sglang", protocol="native", ...)`."""

    path: Path
    run: str
    policy: str
    protocol: str
    cookbook: CookbookCodec | None  # writes the messages of that protocol; None: the native form
    chat: str  # fingerprint of the codec that wrote its tokens
    digest: str  # of what the run stood on


def make_source(path: Path, name: str, policy: PolicyConfig, chat: ChatConfig, *, fingerprint: str, digest: str) -> Source:
    """A run as a source. Raises UserError when its protocol cannot be written any more (a tokenizer that is gone)."""
    codec = make_codec(chat) if chat.protocol == "cookbook" else None
    return Source(
        path=path,
        run=name,
        policy=policy.model or policy.kind,
        protocol=chat.protocol,
        cookbook=codec if isinstance(codec, CookbookCodec) else None,
        chat=fingerprint,
        digest=digest,
    )


def row_of(record: EpisodeRecord, source: Source) -> dict[str, Any]:
    """The row of one episode: OpenAI `messages` and `tools` in its chat protocol, its tokens where it has them, its origin."""
    episode, task = record.episode, record.episode.task
    loaded = domain(task.domain)
    opening = Opening(policy=loaded.policy, messages=episode.messages, tools=loaded.tools)
    cookbook = source.cookbook
    metadata = {
        "id": record.attempt.key,
        "domain": task.domain,
        "task_id": task.task_id,
        "split": task.split,
        "kind": kind_of(task),
        "seed": episode.seed,
        "reward": record.score.task if record.score else None,
        "partial": record.score.partial if record.score else None,
        "policy": source.policy,
        "protocol": source.protocol,
        "chat": source.chat,
        "run": source.run,
        "digest": source.digest,
    }
    dicts = cookbook.conversation(opening) if cookbook else conversation(opening)
    return {
        "messages": [_openai(message) for message in dicts],
        "tools": [] if cookbook else list(loaded.tools),  # the cookbook has them in its system message
        "metadata": metadata,
        **_tokens(episode),
    }


def _tokens(episode: Episode) -> dict[str, Any]:
    """The tokens up to the last sampled one, and which to learn: all that were sampled, but for turns that could not be read."""
    if not episode.token_ids or not episode.turns:
        return {}
    sample = pack.pack(episode)
    mask = list(sample.loss_mask)
    for turn in episode.turns:
        if turn.malformed is not None:
            mask[turn.start : turn.end] = [0] * (turn.end - turn.start)
    end = episode.turns[-1].end
    return {"token_ids": list(sample.token_ids[:end]), "loss_mask": mask[:end]}


def _openai(message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message as OpenAI has it: the arguments of a call are JSON in a string."""
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    written = [{**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}} for c in calls]
    return {**message, **({"tool_calls": written} if written else {})}
