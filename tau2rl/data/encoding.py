"""Rows of conversations to training samples: which tokens an assistant would have sampled, and nothing else.

A row that has the tokens that were sampled is trained on those, where the checkpoint writes as the one that sampled them did;
all others are rendered from their messages. How rows are read is `data/rows.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tau2rl.chat import codec_fingerprint
from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.families import schemas_of
from tau2rl.chat.native import NativeCodec
from tau2rl.chat.template import chat_dicts
from tau2rl.chat.tokenizers import Tokenizer, date_of
from tau2rl.config import TemplateConfig
from tau2rl.data.rows import BadRow, Row, exact_sample, read_row
from tau2rl.errors import MalformedTurn, UserError
from tau2rl.hashing import prefix_hash
from tau2rl.types import Episode, Message, Say, Think, ToolSchema, TrainingSample, Turn

log = logging.getLogger(__name__)


def pack(episode: Episode) -> tuple[TrainingSample, ...]:
    """An episode's sequences with their masks: one, or, where thoughts were taken out, one for each run of turns between.

    Every turn stands behind the very prompt that was sent, and its sampled tokens are in exactly one sample, which ends with the
    last of them. Malformed turns are in it: they were sampled by the policy as any other. What was put in to close a thought was
    not. Logprobs are None when any turn of the episode has none. Raises ValueError, naming the turn, when a hash, a span or the
    number of logprobs does not fit.
    """
    known = all(turn.logprobs is not None for turn in episode.turns)
    samples: list[TrainingSample] = []
    sequence: list[int] = []  # the prompt of the turn at hand, then what was sampled behind it
    part = _Part()
    end = 0  # of the turn before, in the episode's tokens
    for number, turn in enumerate(episode.turns):
        _check_span(episode, number, end)
        if turn.kept is not None:
            if part.spans:
                samples.append(part.sample(sequence, known=known))
            sequence, part = sequence[: turn.kept], _Part()
        sequence += episode.token_ids[end : turn.start]
        if prefix_hash(sequence) != turn.prompt_hash:
            raise ValueError(f"turn {number} was sampled behind another prompt than its first {len(sequence)} tokens")
        part.add(turn, len(sequence))
        sequence += episode.token_ids[turn.start : turn.end]
        end = turn.end
    return (*samples, *([part.sample(sequence, known=known)] if part.spans else []))


def _check_span(episode: Episode, number: int, end: int) -> None:
    turn, size = episode.turns[number], len(episode.token_ids)
    if not end <= turn.start < turn.end <= size:
        raise ValueError(f"turn {number} spans [{turn.start}, {turn.end}) behind token {end} of {size}")
    if turn.logprobs is not None and len(turn.logprobs) != turn.end - turn.start:
        raise ValueError(f"turn {number} has {turn.end - turn.start} tokens and {len(turn.logprobs)} logprobs")
    if turn.forced is not None and not turn.start <= turn.forced[0] < turn.forced[1] <= turn.end:
        raise ValueError(f"turn {number} spans [{turn.start}, {turn.end}) without what closed its thought, {turn.forced}")


@dataclass(slots=True)
class _Part:
    """Turns of one sequence, by their places in it."""

    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    forced: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    logprobs: list[Sequence[float]] = field(default_factory=list[Sequence[float]])

    def add(self, turn: Turn, start: int) -> None:
        self.spans.append((start, start + turn.end - turn.start))
        self.logprobs.append(turn.logprobs or ())
        if turn.forced is not None:
            self.forced.append((turn.forced[0] - turn.start + start, turn.forced[1] - turn.start + start))

    def sample(self, sequence: Sequence[int], *, known: bool) -> TrainingSample:
        size = self.spans[-1][1]
        mask, logprobs = [0] * size, [0.0] * size
        for (start, end), values in zip(self.spans, self.logprobs, strict=True):
            mask[start:end] = [1] * (end - start)
            if known:
                logprobs[start:end] = values
        for start, end in self.forced:
            mask[start:end] = [0] * (end - start)
            logprobs[start:end] = [0.0] * (end - start)
        return TrainingSample(
            token_ids=tuple(sequence[:size]),
            loss_mask=tuple(mask),
            logprobs=tuple(logprobs) if known else None,
            turn_spans=tuple(self.spans),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedRow:
    """A row that was left out: `DroppedRow(id="17", at="rows.jsonl:17", reason=TOO_LONG, tokens=9120)`."""

    id: str
    at: str  # file and line
    reason: str
    tokens: int | None = None


TOO_LONG = "too long"  # the reason of a row that has more tokens than are allowed
NAMED = 20  # rows that a line of the log or a report names


def dropped_account(dropped: Sequence[DroppedRow]) -> dict[str, Any]:
    """What a report says of rows that were left out: all of them counted by reason, the first `NAMED` of them by name."""
    reasons = dict(Counter(row.reason for row in dropped).most_common())
    return {"reasons": reasons, "dropped_rows": [asdict(row) for row in dropped[:NAMED]]}


def warn_of_long_rows(dropped: Sequence[DroppedRow], *, max_tokens: int) -> None:
    """Name in the log, before anything is trained, the rows that are left out for their length."""
    long = [row for row in dropped if row.reason == TOO_LONG]
    if long:
        names = ", ".join(f"{row.at} ({row.tokens})" for row in long[:NAMED]) + (", ..." if len(long) > NAMED else "")
        log.warning("%d rows have more than %d tokens and are left out: %s", len(long), max_tokens, names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What became of the rows."""

    rows: tuple[tuple[TrainingSample, ...], ...]  # of each that is used its samples: several where thoughts are taken out
    ids: tuple[str, ...]  # of those rows
    dropped: tuple[DroppedRow, ...]
    exact: int = 0  # of those rows: with the tokens that were sampled; the others were rendered from their messages
    thoughts_left_out: int = 0  # of AReaL answers, where nothing thinks

    @property
    def samples(self) -> tuple[TrainingSample, ...]:
        """Of all rows."""
        return tuple(sample for row in self.rows for sample in row)


def encode_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], tokenizer: Tokenizer, *, max_tokens: int, chat: TemplateConfig | None = None
) -> Encoded:
    """Encode what can be trained on, name what cannot. A row longer than `max_tokens` is left out whole, never cut.

    Raises UserError, with file and line, for a row with thoughts that `chat` has no place for.
    """
    encoder = RowEncoder(tokenizer, chat)
    found: list[tuple[TrainingSample, ...]] = []
    ids: list[str] = []
    dropped: list[DroppedRow] = []
    exact = 0
    for name, data in rows:
        try:
            row = encoder.admit(read_row(data, name=name))
            samples, is_exact = encoder.samples(row, data)
        except BadRow as error:
            dropped.append(DroppedRow(id=name, at=name, reason=str(error)))
            continue
        if (longest := max(len(sample.token_ids) for sample in samples)) > max_tokens:
            dropped.append(DroppedRow(id=row.id, at=name, reason=TOO_LONG, tokens=longest))
            continue
        found.append(samples)
        ids.append(row.id)
        exact += is_exact
    left_out = encoder.thoughts_left_out
    return Encoded(rows=tuple(found), ids=tuple(ids), dropped=tuple(dropped), exact=exact, thoughts_left_out=left_out)


class RowEncoder:
    """Writes a row as the chat protocol would have: prompts by the template, turns as they would be sampled."""

    def __init__(self, tokenizer: Tokenizer, chat: TemplateConfig | None = None) -> None:
        """Raises UserError when the template cannot be used."""
        chat = chat or TemplateConfig()
        self._vocab_size = tokenizer.vocab_size
        self._codec = NativeCodec(tokenizer, thinking=chat.thinking, date=date_of(chat))
        self._chat = self._codec.chat
        self._fingerprints = _fingerprints(tokenizer, self._codec, chat)
        self.thoughts_left_out = 0

    def samples(self, row: Row, data: Mapping[str, Any]) -> tuple[tuple[TrainingSample, ...], bool]:
        """What is trained on of a row that was admitted, and whether it is what was sampled. Raises BadRow."""
        sampled = self.sampled(row, data)
        return (self.encode(row), False) if sampled is None else ((sampled,), True)

    def admit(self, row: Row) -> Row:
        """The row as it can be written. Raises UserError where the setting has no place for a thought, which would vanish."""
        thought = next((i for i, message in enumerate(row.messages) if message.reasoning), None)
        if self._chat.thinking != "off" or thought is None:
            return row
        if thought == row.aside:
            self.thoughts_left_out += 1
            messages = [replace(m, reasoning="") if i == thought else m for i, m in enumerate(row.messages)]
            return replace(row, messages=tuple(messages))
        raise UserError(
            f"`{row.at}`: message {thought} has a thought (`reasoning_content`), and chat.thinking is `off`",
            hint="chat.thinking=keep or per-turn trains on thoughts; to train without them, take the field out of the rows",
        )

    def sampled(self, row: Row, data: Mapping[str, Any]) -> TrainingSample | None:
        """A row's tokens as they were sampled; None where this checkpoint would write them otherwise. Raises BadRow."""
        if row.chat not in self._fingerprints:
            return None
        sample = exact_sample(data)
        if sample is not None and not 0 <= min(sample.token_ids) <= max(sample.token_ids) < self._vocab_size:
            raise BadRow("`token_ids` that the tokenizer does not have")
        return sample

    def encode(self, row: Row) -> tuple[TrainingSample, ...]:
        """The conversation up to the last turn that is learned. Raises BadRow when no turn can be trained on."""
        try:
            return self._encode(row)
        except UserError as error:  # the template takes others
            raise BadRow(error.message) from None
        except RecursionError:
            raise BadRow("it is nested too deep") from None

    def _encode(self, row: Row) -> tuple[TrainingSample, ...]:
        learned = learned_turns(row)
        turns = [turn for turn in sampled_turns(row) if turn <= learned[-1]]
        dicts = chat_dicts(row.messages)
        ids = self._chat.open(dicts[: turns[0]], list(row.tools))
        samples: list[TrainingSample] = []
        spans: list[tuple[int, int]] = []
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            written = self._write(row.messages[turn], row.tools)
            if turn in learned:
                spans.append((len(ids), len(ids) + len(written)))
            whole = [*ids, *written]
            ids = whole if following is None else self._chat.extend(ids, written, dicts[turn + 1 : following])
            if spans and (following is None or ids[: len(whole)] != whole):  # thoughts were taken out
                samples.append(_sample(whole, spans))
                spans = []
        return tuple(samples)

    def _write(self, message: Message, tools: Sequence[ToolSchema]) -> list[int]:
        thought = (Think(text=message.reasoning),) if message.reasoning.strip() else ()
        if not message.tool_calls:  # as it stands: older data write their calls into the text
            ids = self._chat.write(message.content + self._chat.end_text, message.reasoning)
            try:
                self._chat.actions(ids, schemas_of(tools))
            except MalformedTurn:  # it was malformed, or its family writes more than the text: gpt-oss its channel
                with suppress(ValueError):
                    return self._codec.write((*thought, Say(text=message.content)), tools)
            return ids
        said = (Say(text=message.content),) if message.content.strip() else ()
        try:
            return self._codec.write((*thought, *said, *message.tool_calls), tools)
        except ValueError as error:
            raise BadRow(f"a turn that this protocol cannot write: {error}") from None


def _sample(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> TrainingSample:
    """What is learned of a sequence, up to the last of it."""
    size = spans[-1][1]
    mask = [0] * size
    for start, end in spans:
        mask[start:end] = [1] * (end - start)
    return TrainingSample(token_ids=tuple(ids[:size]), loss_mask=tuple(mask), logprobs=None, turn_spans=tuple(spans))


def _fingerprints(tokenizer: Tokenizer, native: NativeCodec, chat: TemplateConfig) -> set[str]:
    """Of the protocols that write with this tokenizer and chat template."""
    found = {codec_fingerprint(native)}
    with suppress(UserError):  # a template that this protocol refuses
        found.add(codec_fingerprint(CookbookCodec(tokenizer, thinking=chat.thinking, date=date_of(chat))))
    return found


def sampled_turns(row: Row) -> list[int]:
    """Where the turns stand that an assistant sampled, or would have: of a row with one turn to learn, that one alone.

    What the assistant says before anyone spoke to it (a greeting) is not sampled.
    """
    heard = next((i for i, m in enumerate(row.messages) if m.role in ("user", "tool")), len(row.messages))
    turns = [i for i, m in enumerate(row.messages) if m.role == "assistant" and i > heard]
    return turns[-1:] if row.last_only else turns


def unmasked_turns(row: Row) -> list[int]:
    """Those of them that the row does not except from learning."""
    return [turn for turn in sampled_turns(row) if turn not in row.masked]


def learned_turns(row: Row) -> list[int]:
    """Those that are learned. Raises BadRow where there is none, or an empty one."""
    turns = unmasked_turns(row)
    if not turns:
        raise BadRow("no assistant turn to learn")
    if empty := [i for i in turns if not row.messages[i].content.strip() and not row.messages[i].tool_calls]:
        raise BadRow(f"message {empty[0]} is an empty assistant turn")
    return turns
