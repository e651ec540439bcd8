"""Rows of conversations to training samples: which tokens an assistant would have sampled, and nothing else.

A row that has the tokens that were sampled is trained on those, where the checkpoint writes as the one that sampled them did;
all others are rendered from their messages. How rows are read is `data/rows.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tau2rl.chat import fingerprint
from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.native import NativeCodec
from tau2rl.chat.template import chat_dicts
from tau2rl.chat.tokenizers import Tokenizer
from tau2rl.data.rows import BadRow, Row, exact_sample, read_row
from tau2rl.errors import UserError
from tau2rl.hashing import prefix_hash
from tau2rl.types import Episode, Message, Say, TrainingSample

log = logging.getLogger(__name__)


def pack(episode: Episode) -> TrainingSample:
    """One sequence with its mask. Malformed turns are in it: they were sampled by the policy as any other.

    Every turn's prompt must still be the one that was sent: raises ValueError, naming the turn, when a hash, a span or the
    number of logprobs does not fit. Logprobs are None when any turn has none.
    """
    size = len(episode.token_ids)
    mask = [0] * size
    logprobs = [0.0] * size
    known = True
    end = 0
    for number, turn in enumerate(episode.turns):
        if not end <= turn.start < turn.end <= size:
            raise ValueError(f"turn {number} spans [{turn.start}, {turn.end}) behind token {end} of {size}")
        if prefix_hash(episode.token_ids[: turn.start]) != turn.prompt_hash:
            raise ValueError(f"turn {number} was sampled behind another prompt than its first {turn.start} tokens")
        if turn.logprobs is not None and len(turn.logprobs) != turn.end - turn.start:
            raise ValueError(f"turn {number} has {turn.end - turn.start} tokens and {len(turn.logprobs)} logprobs")
        mask[turn.start : turn.end] = [1] * (turn.end - turn.start)
        if turn.logprobs is None:
            known = False
        else:
            logprobs[turn.start : turn.end] = turn.logprobs
        end = turn.end
    return TrainingSample(
        token_ids=episode.token_ids,
        loss_mask=tuple(mask),
        logprobs=tuple(logprobs) if known else None,
        turn_spans=tuple((turn.start, turn.end) for turn in episode.turns),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that was left out: `Dropped(id="17", at="rows.jsonl:17", reason=TOO_LONG, tokens=9120)`."""

    id: str
    at: str  # file and line
    reason: str
    tokens: int | None = None


TOO_LONG = "too long"  # the reason of a row that has more tokens than are allowed
NAMED = 20  # rows that a line of the log names


def warn_of_long_rows(dropped: Sequence[Dropped], *, max_tokens: int) -> None:
    """Name in the log, before anything is trained, the rows that are left out for their length."""
    long = [row for row in dropped if row.reason == TOO_LONG]
    if long:
        names = ", ".join(f"{row.at} ({row.tokens})" for row in long[:NAMED]) + (", ..." if len(long) > NAMED else "")
        log.warning("%d rows have more than %d tokens and are left out: %s", len(long), max_tokens, names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What became of the rows."""

    samples: tuple[TrainingSample, ...]
    ids: tuple[str, ...]  # of the samples
    dropped: tuple[Dropped, ...]
    exact: int = 0  # of the samples: those with the tokens that were sampled; the others were rendered from their messages


def encode_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], tokenizer: Tokenizer, *, max_tokens: int) -> Encoded:
    """Encode what can be trained on, name what cannot. A row longer than `max_tokens` is left out whole, never cut."""
    encoder = RowEncoder(tokenizer)
    samples: list[TrainingSample] = []
    ids: list[str] = []
    dropped: list[Dropped] = []
    exact = 0
    for name, data in rows:
        try:
            row = read_row(data, name=name)
            sampled = encoder.sampled(row, data)
            sample = sampled or encoder.encode(row)
        except BadRow as error:
            dropped.append(Dropped(id=name, at=name, reason=str(error)))
            continue
        if len(sample.token_ids) > max_tokens:
            dropped.append(Dropped(id=row.id, at=name, reason="too long", tokens=len(sample.token_ids)))
            continue
        samples.append(sample)
        ids.append(row.id)
        exact += sampled is not None
    return Encoded(samples=tuple(samples), ids=tuple(ids), dropped=tuple(dropped), exact=exact)


class RowEncoder:
    """Writes a row as the chat protocol would have: prompts by the template, turns as they would be sampled."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UserError when the template cannot be used."""
        self._vocab_size = tokenizer.vocab_size
        self._codec = NativeCodec(tokenizer)
        self._chat = self._codec.chat
        self._fingerprints = _fingerprints(tokenizer, self._codec)

    def sampled(self, row: Row, data: Mapping[str, Any]) -> TrainingSample | None:
        """A row's tokens as they were sampled; None where this checkpoint would write them otherwise. Raises BadRow."""
        if row.chat not in self._fingerprints:
            return None
        sample = exact_sample(data)
        if sample is not None and not 0 <= min(sample.token_ids) <= max(sample.token_ids) < self._vocab_size:
            raise BadRow("`token_ids` that the tokenizer does not have")
        return sample

    def encode(self, row: Row) -> TrainingSample:
        """The conversation up to the last turn that is learned. Raises BadRow when no turn can be trained on."""
        try:
            return self._encode(row)
        except UserError as error:  # the template takes others
            raise BadRow(error.message) from None
        except RecursionError:
            raise BadRow("it is nested too deep") from None

    def _encode(self, row: Row) -> TrainingSample:
        learned = learned_turns(row)
        turns = [turn for turn in sampled_turns(row) if turn <= learned[-1]]
        dicts = chat_dicts(row.messages)
        ids = self._chat.open(dicts[: turns[0]], list(row.tools))
        spans: list[tuple[int, int]] = []
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            written = self._write(row.messages[turn])
            if turn in learned:
                spans.append((len(ids), len(ids) + len(written)))
            ids = [*ids, *written] if following is None else self._chat.extend(ids, written, dicts[turn + 1 : following])
        mask = [0] * len(ids)
        for start, end in spans:
            mask[start:end] = [1] * (end - start)
        return TrainingSample(token_ids=tuple(ids), loss_mask=tuple(mask), logprobs=None, turn_spans=tuple(spans))

    def _write(self, message: Message) -> list[int]:
        if not message.tool_calls:  # as it stands: older data write their calls into the text
            return self._chat.write(message.content + self._chat.end_text)
        said = (Say(text=message.content),) if message.content.strip() else ()
        try:
            return self._codec.write((*said, *message.tool_calls))
        except ValueError as error:
            raise BadRow(f"a turn that this protocol cannot write: {error}") from None


def _fingerprints(tokenizer: Tokenizer, native: NativeCodec) -> set[str]:
    """Of the protocols that write with this tokenizer and chat template."""
    found = {fingerprint(native)}
    with suppress(UserError):  # a template that this protocol refuses
        found.add(fingerprint(CookbookCodec(tokenizer)))
    return found


def sampled_turns(row: Row) -> list[int]:
    """Where the turns stand that an assistant sampled, or would have: of a row with one turn to learn, that one alone.

    What the assistant says before anyone spoke to it (a greeting) is not sampled.
    """
    heard = next((i for i, m in enumerate(row.messages) if m.role in ("user", "tool")), len(row.messages))
    turns = [i for i, m in enumerate(row.messages) if m.role == "assistant" and i > heard]
    return turns[-1:] if row.last_only else turns


def learned_turns(row: Row) -> list[int]:
    """Those of them that are learned. Raises BadRow where there is none, or an empty one."""
    turns = [turn for turn in sampled_turns(row) if turn not in row.masked]
    if not turns:
        raise BadRow("no assistant turn to learn")
    if empty := [i for i in turns if not row.messages[i].content.strip() and not row.messages[i].tool_calls]:
        raise BadRow(f"message {empty[0]} is an empty assistant turn")
    return turns
