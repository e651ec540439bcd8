"""`tau2rl data`: files of rows, looked at: one token by token, the first ones, all of them for what is wrong, and counted."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tau2rl import console
from tau2rl.cli import data_writing
from tau2rl.cli.lazy import examples
from tau2rl.cli.options import RUN, ConfigFile, Json, Sets, option
from tau2rl.config import SftConfig, load_config
from tau2rl.errors import UserError
from tau2rl.report.tables import quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tau2rl.chat.tokenizers import Tokenizer
    from tau2rl.data.encoding import Encoded
    from tau2rl.data.inspection import Further, RowFault
    from tau2rl.types import TrainingSample

app = typer.Typer(help="Look at, check, count, mix and convert rows of datasets.", no_args_is_help=True)
SHOWN = 100  # faults that are printed; `--json` has all
Files = Annotated[
    list[Path],
    typer.Argument(help="Files of rows: JSONL, also `.gz` or `.zst`, or Parquet.", metavar="FILE...", show_default=False),
]
TokenizerDir = Annotated[
    str | None,
    option(
        "--tokenizer",
        help="A checkpoint's directory, or `bytes`: how long the rows are, and which `sft` leaves out.",
        metavar="DIR",
    ),
]


@app.command(
    epilog=examples(
        "tau2rl data show outputs/seed/default/rows.jsonl --tokenizer DIR",
        "tau2rl data show ROWS --tokenizer DIR --row 17 --set chat.thinking=keep --json",
    )
)
def show(
    rows: Annotated[Path, typer.Argument(help="A file of rows.", metavar="ROWS")],
    tokenizer: Annotated[str, option("--tokenizer", help="A checkpoint's directory, or `bytes`.", metavar="DIR")],
    row: Annotated[int, typer.Option("--row", help="Which one, counted from 1.", min=1, metavar="N", rich_help_panel=RUN)] = 1,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print a row's tokens, each with its id and whether it is learned (`+`), and the text of every turn that is.

    A row that `sft` would leave out is shown with its reason. Exits with 2 where `sft` would refuse the file.
    """
    chosen = load_config(SftConfig, config, sets or ())
    from tau2rl.chat.tokenizers import load_tokenizer
    from tau2rl.data.jsonl import read_row_file

    named = next(islice(read_row_file(rows.expanduser()), row - 1, None), None)
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
    count = f"{quantity(shown['num_tokens'], 'token')}, {shown['num_learned']} learned"
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


@app.command(epilog=examples("tau2rl data inspect WRIT-2K.parquet", "tau2rl data inspect ROWS --limit 1 --json"))
def inspect(
    files: Files,
    limit: Annotated[int, typer.Option("--limit", help="Rows of each file.", min=1, metavar="N", rich_help_panel=RUN)] = 3,
    as_json: Json = False,
) -> None:
    """Print which layout the first rows of a file have, their columns, and what was said and done in them.

    Layouts are recognized by their keys: rows of tau2rl, OpenAI messages, WRIT-2K, AReaL-tau2-data (rows and tasks),
    tau2-sft-seed-v3, tau2 tasks, prompt rows.
    """
    from tau2rl.data.jsonl import read_row_file

    found = [_seen(at, data) for file in files for at, data in islice(read_row_file(file.expanduser()), limit)]
    if as_json:
        console.emit_json({"rows": found})
        return
    for row in found:
        console.emit(f"{row['at']}: {row['layout']}; columns {', '.join(row['columns'])}")
        for name, value in row.items():
            if name not in ("at", "layout", "columns") and value not in ("", None, []):
                words = ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else value
                console.emit(f"  {name}: {words}")


def _seen(at: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """A row in a few words; of one that is no conversation its keys alone."""
    from tau2rl.data.layouts import layout_of, row_facts
    from tau2rl.data.rows import BadRow

    shown = {"at": at, "layout": layout_of(data).value, "columns": list(data)}
    if not layout_of(data).is_conversation:
        return shown
    try:
        row, said = row_facts(data, name=at)
    except BadRow as error:
        return {**shown, "bad": str(error)}
    named = ("id", "domain", "task", "user", "split", "source", "licence", "behaviour", "cell", "reward", "turns")
    return {
        **shown,
        **{name: getattr(said, name) for name in named},
        "messages": len(row.messages),
        "tools": len(row.tools),
        "calls": [call.name for call in said.calls],
        "first_words": said.said[:200],
    }


@app.command(
    epilog=examples(
        "tau2rl data validate outputs/seed/default/rows.jsonl",
        "tau2rl data validate ROWS --against-test --tokenizer DIR --set data.max_tokens=16384",
    )
)
def validate(
    files: Files,
    against_test: Annotated[
        bool,
        option(
            "--against-test",
            help="Name the rows that share a user, an order or reservation, a write with its arguments or a run of eight words "
            "with one of tau2's test tasks.",
        ),
    ] = False,
    tokenizer: TokenizerDir = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Name every bad row by file and line, with what is wrong with it.

    Looked for: lines that are no JSON, rows that `sft` cannot read, results without a call and calls without a result, calls of
    tools or with arguments that the row's own schemas do not have, rows that teach nothing, a conversation twice. On request:
    rows that a checkpoint's template refuses or that are too long (`--set data.max_tokens=N`), and overlap with the test tasks.

    Exits with 0 when no row is bad, 2 when one is.
    """
    chosen = load_config(SftConfig, config, sets or ())
    from tau2rl.data import inspection

    further: list[Further] = [_against_test()] if against_test else []
    count, faults = inspection.validate(files, further)
    if tokenizer:
        encoded = _encoded(files, tokenizer, chosen)
        known = {fault.at for fault in faults}
        faults += [
            inspection.RowFault(at=one.at, why=f"sft leaves it out: {one.reason}")
            for one in encoded.dropped
            if one.at not in known
        ]
    _print_faults(count, faults, as_json=as_json)
    raise typer.Exit(2 if faults else 0)


def _print_faults(count: int, faults: Sequence[RowFault], *, as_json: bool) -> None:
    bad = len({fault.at for fault in faults})
    if as_json:
        console.emit_json({"rows": count, "bad": bad, "faults": [{"at": fault.at, "why": fault.why} for fault in faults]})
        return
    for fault in faults[:SHOWN]:
        console.emit(f"{fault.at}: {fault.why}")
    if len(faults) > SHOWN:
        console.emit(f"and {len(faults) - SHOWN} more (`--json` has all)")
    console.say(f"{quantity(count, 'row')}, {bad} bad")


def _against_test() -> Further:
    from tau2rl.synth.contamination import RowGuard, overlap_words

    guard = RowGuard()
    return lambda name, data, row, said: overlap_words(guard.of_row(said))


def _encoded(files: Iterable[Path], tokenizer: str, config: SftConfig) -> Encoded:
    """All rows as `sft` trains on them. Raises UserError as it does."""
    from tau2rl.chat.tokenizers import load_tokenizer
    from tau2rl.data.encoding import encode_rows
    from tau2rl.data.inspection import rows

    named = rows(tuple(files), bad=lambda fault: None)
    return encode_rows(named, load_tokenizer(tokenizer), max_tokens=config.data.max_tokens, chat=config.chat)


@app.command(
    epilog=examples(
        "tau2rl data stats outputs/seed/default/rows.jsonl", "tau2rl data stats WRIT-2K.parquet --tokenizer DIR --json"
    )
)
def stats(
    files: Files, tokenizer: TokenizerDir = None, config: ConfigFile = None, sets: Sets = None, as_json: Json = False
) -> None:
    """Count the rows by layout, domain, source, licence, split, behaviour and cell of the grid; and how long they are.

    Turns are the assistant's that are learned, writes its calls that change the domain's database. Rows that cannot be read are
    counted as bad; `tau2rl data validate` names them.
    """
    chosen = load_config(SftConfig, config, sets or ())
    from tau2rl.data.inspection import spread
    from tau2rl.share.dataset import row_counts

    report = row_counts(files)
    if tokenizer:
        encoded = _encoded(files, tokenizer, chosen)
        report["tokens"] = spread([len(sample.token_ids) for sample in encoded.samples]) if encoded.samples else None
        report["left_out_by_sft"] = len(encoded.dropped)
    if as_json:
        console.emit_json(report)
        return
    console.emit(data_writing.in_short(report))
    for name, counts in report.items():
        if name.startswith("by_"):
            rows = [[key, str(value)] for key, value in cast("dict[str, int]", counts).items()]
            console.emit_table([[name.removeprefix("by_"), "rows"], *rows])
    sizes = [name for name in ("turns", "calls", "writes", "tokens") if report.get(name)]
    if sizes:
        columns = list(report[sizes[0]])
        console.emit_table([["", *columns], *([name, *(str(report[name][key]) for key in columns)] for name in sizes)])


app.command(
    epilog=examples(
        "tau2rl data mix --from a/rows.jsonl --from b/rows.jsonl --output both.jsonl",
        "tau2rl data mix --from mine.jsonl=3 --from WRIT-2K.parquet=1 --rows 2000 --seed 1 --output mix.parquet",
    )
)(data_writing.mix)
app.command(
    epilog=examples("tau2rl data card data/mix.jsonl --license apache-2.0", "tau2rl data card train.parquet val.parquet --json")
)(data_writing.card)
app.command(
    "import",
    epilog=examples(
        "tau2rl data import WRIT-2K.parquet --output writ.jsonl",
        "tau2rl data import AReaL-tau2-data/tau2_rl_train.jsonl --output data/areal-tasks",
    ),
)(data_writing.import_)
