"""`tau2rl data show`: a row of a dataset as `sft` trains on it, token by token."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.lazy import examples
from tau2rl.cli.options import RUN, ConfigFile, Json, Sets
from tau2rl.config import SftConfig, load
from tau2rl.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tau2rl.chat.tokenizers import Tokenizer
    from tau2rl.types import TrainingSample

app = typer.Typer(help="Look at what is trained on of a dataset's rows.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "tau2rl data show outputs/seed/default/rows.jsonl --tokenizer DIR",
        "tau2rl data show ROWS --tokenizer DIR --row 17 --set chat.thinking=keep --json",
    )
)
def show(
    rows: Annotated[Path, typer.Argument(help="A file of rows.", metavar="ROWS")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="A checkpoint's directory, or `bytes`.", metavar="DIR", rich_help_panel=RUN)
    ],
    row: Annotated[int, typer.Option("--row", help="Which one, counted from 1.", min=1, metavar="N", rich_help_panel=RUN)] = 1,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print a row's tokens, each with its id and whether it is learned (`+`), and the text of every turn that is.

    A row that `sft` would leave out is shown with its reason. Exits with 2 where `sft` would refuse the file.
    """
    chosen = load(SftConfig, config, sets or ())
    from tau2rl.chat.tokenizers import load_tokenizer
    from tau2rl.data.jsonl import read_file

    named = next(islice(read_file(rows.expanduser()), row - 1, None), None)
    if named is None:
        raise UserError(f"`{rows}` has no row {row}", hint="rows are counted from 1")
    shown = _shown(*named, load_tokenizer(tokenizer), chosen)
    if as_json:
        console.emit_json(shown)
        return
    if shown["left_out"]:
        console.emit(f"{shown['at']}: left out: {shown['left_out']}")
        return
    how = "as it was sampled" if shown["exact"] else "written from its messages"
    count = f"{shown['num_tokens']} tokens, {shown['num_learned']} learned"
    console.emit(f"{shown['at']} ({shown['id']}): {count}; {how}; chat.thinking {shown['thinking']}")
    for number, sample in enumerate(shown["samples"], start=1):
        console.emit(f"\n--- sample {number} of {len(shown['samples'])} ---")
        for place, token in enumerate(sample["tokens"]):
            console.emit(f"{'+' if token['learned'] else ' '} {place:6} {token['id']:7}  {token['text']!r}")
        for turn in sample["turns"]:
            console.emit(f"\nlearned, tokens {turn['start']} to {turn['end'] - 1}:\n{turn['text']}")


def _shown(at: str, data: Mapping[str, Any], tokenizer: Tokenizer, config: SftConfig) -> dict[str, Any]:
    """What is trained on of one row. Raises UserError as `sft` does."""
    from tau2rl.data.encoding import encode_rows

    encoded = encode_rows([(at, data)], tokenizer, max_tokens=config.data.max_tokens, chat=config.chat)
    samples = encoded.samples
    (left_out,) = [one.reason for one in encoded.dropped] or [None]
    return {
        "at": at,
        "id": encoded.ids[0] if encoded.ids else None,
        "left_out": left_out,
        "thinking": config.chat.thinking,
        "thoughts_left_out": encoded.thoughts_left_out,
        "exact": bool(encoded.exact),
        "num_tokens": sum(len(sample.token_ids) for sample in samples),
        "num_learned": sum(sum(sample.loss_mask) for sample in samples),
        "samples": [_sample(sample, tokenizer) for sample in samples],
    }


def _sample(sample: TrainingSample, tokenizer: Tokenizer) -> dict[str, Any]:
    ids, decode = sample.token_ids, tokenizer.decode
    pairs = zip(ids, sample.loss_mask, strict=True)
    return {
        "tokens": [{"id": token, "text": decode([token]), "learned": bool(bit)} for token, bit in pairs],
        "turns": [{"start": start, "end": end, "text": decode(ids[start:end])} for start, end in sample.turn_spans],
    }
