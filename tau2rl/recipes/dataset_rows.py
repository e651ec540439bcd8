"""One episode as a dataset row: the conversation that took place, in OpenAI's layout, and its tokens where it has them.

A turn that was not carried out (malformed, or cut off by its token limit) stands in the row as it was sampled, because what
follows answers it, and is marked as not to be learned: `step_loss_mask: 0`, and 0 in the mask of the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tau2rl.chat import make_codec
from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.native import conversation
from tau2rl.chat.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from tau2rl.config import ChatConfig, PolicyConfig
from tau2rl.data import encoding
from tau2rl.env.domain import domain
from tau2rl.env.tasks import kind_of
from tau2rl.types import ChatCodec, Episode, EpisodeRecord, Opening, Turn

Chat = dict[str, Any]  # one message


@dataclass(frozen=True, kw_only=True)
class Source:
    """One run whose episodes are used: `Source(path=Path("outputs/eval/x"), run="x", policy="sglang", chat=..., ...)`."""

    path: Path
    run: str
    policy: str
    chat: ChatConfig
    fingerprint: str  # of the codec that wrote its tokens
    digest: str  # of what the run stood on
    cookbook: CookbookCodec | None = field(default=None)  # writes the messages of that protocol; None: the native form

    @cached_property
    def codec(self) -> ChatCodec:
        """What wrote its tokens. Raises UserError for a tokenizer that is gone."""
        return self.cookbook or make_codec(self.chat)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What reads its tokens. Raises UserError for a tokenizer that is gone."""
        if self.chat.protocol == "transcript" or self.chat.tokenizer is None:
            return ByteTokenizer()
        return load_tokenizer(self.chat.tokenizer)


def make_source(path: Path, name: str, policy: PolicyConfig, chat: ChatConfig, *, fingerprint: str, digest: str) -> Source:
    """A run as a source. Raises UserError when its protocol cannot be written any more (a tokenizer that is gone)."""
    codec = make_codec(chat) if chat.protocol == "cookbook" else None
    return Source(
        path=path,
        run=name,
        policy=policy.model or policy.kind,
        chat=chat,
        fingerprint=fingerprint,
        digest=digest,
        cookbook=codec if isinstance(codec, CookbookCodec) else None,
    )


def row_of(record: EpisodeRecord, source: Source) -> dict[str, Any]:
    """The row of one episode, with its origin. Raises UserError for a tokenizer that is gone."""
    episode, task = record.episode, record.episode.task
    loaded = domain(task.domain)
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
        "protocol": source.chat.protocol,
        "chat": source.fingerprint,
        "run": source.run,
        "digest": source.digest,
    }
    opening = Opening(domain_policy=loaded.policy, messages=episode.messages, tools=loaded.tools)
    dicts = source.cookbook.conversation(opening) if source.cookbook else conversation(opening)
    return {
        "messages": [_openai(message) for message in _with_lost_turns(dicts, episode, source)],
        "tools": [] if source.cookbook else list(loaded.tools),  # the cookbook has them in its system message
        "metadata": metadata,
        **_tokens(episode),
    }


def _with_lost_turns(dicts: list[Chat], episode: Episode, source: Source) -> list[Chat]:
    """The messages, and before each repair request the turn that earned it; one without a request ends the conversation."""
    out, position, behind = list[Chat](), 0, 0
    for turn in episode.turns:
        if _was_carried_out(turn) or not episode.token_ids:
            continue
        asked = _repair_request(dicts, behind, turn)
        out += [*dicts[position:asked], {"role": "assistant", "content": _text(turn, episode, source), "step_loss_mask": 0}]
        position, behind = asked, asked + 1
    return [*out, *dicts[position:]]


def _was_carried_out(turn: Turn) -> bool:
    return bool(turn.actions)


def _repair_request(dicts: list[Chat], start: int, turn: Turn) -> int:
    """Where the answer to a malformed turn stands; the end of the conversation where there was none."""
    if turn.malformed is None:
        return len(dicts)
    begins = f"FORMAT ERROR ({turn.malformed.value})"
    found = (i for i in range(start, len(dicts)) if dicts[i]["role"] == "user" and dicts[i]["content"].startswith(begins))
    return next(found, len(dicts))


def _text(turn: Turn, episode: Episode, source: Source) -> str:
    """What was sampled, without the token that ended the turn."""
    ids = episode.token_ids[turn.start : turn.end]
    ended = ids[-1] in source.codec.stop_token_ids
    return source.tokenizer.decode(ids[:-1] if ended else ids)


def _tokens(episode: Episode) -> dict[str, Any]:
    """The tokens up to the last sampled one, and which to learn: all that were sampled in turns that were carried out."""
    if not episode.token_ids or not episode.turns:
        return {}
    sample = encoding.pack(episode)
    mask = list(sample.loss_mask)
    for turn in episode.turns:
        if not _was_carried_out(turn):
            mask[turn.start : turn.end] = [0] * (turn.end - turn.start)
    end = episode.turns[-1].end
    return {"token_ids": list(sample.token_ids[:end]), "loss_mask": mask[:end]}


def _openai(message: Mapping[str, Any]) -> Chat:
    """A chat message as OpenAI has it: the arguments of a call are JSON in a string."""
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    written = [{**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}} for c in calls]
    return {**message, **({"tool_calls": written} if written else {})}
