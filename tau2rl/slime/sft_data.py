"""The rows that slime reads for `sft`: conversations in the layout of its supervised rollout, long ones left out whole.

slime cuts nothing and checks nothing: a row that is longer than a forward pass becomes one all the same and runs out of memory
(THUDM/slime#1951). What is not learned is marked on the messages, `step_loss_mask: 0`: a greeting, history, a malformed turn that
was answered with a repair request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tau2rl.chat.template import chat_dicts
from tau2rl.chat.tokenizers import Tokenizer
from tau2rl.config import SftConfig
from tau2rl.data.encoding import TOO_LONG, DroppedRow, RowEncoder, dropped_account, learned_turns
from tau2rl.data.jsonl import write_rows
from tau2rl.data.rows import BadRow, Row, read_row
from tau2rl.rollouts.episode import REPAIR_REQUEST
from tau2rl.types import TrainingSample

MARK = "step_loss_mask"  # slime's word on a message, and ours in a row: 0 = not learned
SLACK_TOKENS = 16  # what a conversation rendered in one piece may have more: the end of its last turn, merges at the seams


@dataclass(slots=True, kw_only=True)
class RowCounts:
    """Where every row went; filled in while they are written."""

    used: int = 0
    tokens: int = 0
    assistant_tokens: int = 0
    longest: int = 0
    dropped: list[DroppedRow] = field(default_factory=list[DroppedRow])

    def add(self, sample: TrainingSample) -> None:
        """Count a row that is used."""
        self.used += 1
        self.tokens += len(sample.token_ids)
        self.assistant_tokens += sum(sample.loss_mask)
        self.longest = max(self.longest, len(sample.token_ids))

    def to_json(self) -> dict[str, Any]:
        """What the report says of the rows."""
        return {
            "used": self.used,
            "held_out": 0,
            "dropped": len(self.dropped),
            **dropped_account(self.dropped),
            "tokens": self.tokens,
            "assistant_tokens": self.assistant_tokens,
            "longest": self.longest,
        }


def longest_row(config: SftConfig) -> int:
    """Tokens of the longest row that a forward pass takes.

    >>> from tau2rl.config import SftConfig
    >>> longest_row(SftConfig(data={"max_tokens": 32768}, slime={"max_tokens_per_gpu": 9216, "context_parallel": 2}))
    18416
    """
    return min(config.data.max_tokens, config.slime.max_tokens_per_gpu * config.slime.context_parallel) - SLACK_TOKENS


def write_conversations(
    rows: Iterable[tuple[str, Mapping[str, Any]]], tokenizer: Tokenizer, path: Path, *, max_tokens: int
) -> RowCounts:
    """Write what can be trained on, one row at a time, and say what became of each. Raises UserError."""
    counts = RowCounts()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, _written(rows, RowEncoder(tokenizer), counts, max_tokens))
    return counts


def conversation_of(row: Row) -> dict[str, Any]:
    """The row as slime reads it, up to its last learned turn.

    Raises BadRow where no turn is left, and for a repair request without the malformed turn that earned it.
    """
    turns = [i for i, message in enumerate(row.messages) if message.role == "assistant"]
    learned = learned_turns(row)
    for i, message in enumerate(row.messages):
        if message.role == "user" and message.content.startswith(REPAIR_REQUEST) and i - 1 not in turns:
            raise BadRow("a repair request without the turn that earned it")
    messages = chat_dicts(row.messages[: learned[-1] + 1])
    for turn in turns:
        if turn < len(messages) and turn not in learned:
            messages[turn][MARK] = 0
    return {"messages": messages, **({"tools": list(row.tools)} if row.tools else {}), "metadata": {"id": row.id}}


def _written(
    rows: Iterable[tuple[str, Mapping[str, Any]]], encoder: RowEncoder, counts: RowCounts, max_tokens: int
) -> Iterator[dict[str, Any]]:
    for name, data in rows:
        try:
            row = encoder.admit(read_row(data, name=name))
            (sample,) = encoder.encode(row)  # nothing thinks, and so nothing is taken out
            conversation = conversation_of(row)
        except BadRow as error:
            counts.dropped.append(DroppedRow(id=name, at=name, reason=str(error)))
            continue
        if len(sample.token_ids) > max_tokens:
            counts.dropped.append(DroppedRow(id=row.id, at=name, reason=TOO_LONG, tokens=len(sample.token_ids)))
            continue
        counts.add(sample)
        yield conversation
