"""`tau2rl data mix`, `card` and `import`: files of rows made of others, and described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.options import OUTPUT, Json, option
from tau2rl.cli.printing import shown
from tau2rl.errors import UserError
from tau2rl.report.tables import quantity
from tau2rl.runs.files import write_json

if TYPE_CHECKING:
    from tau2rl.data.mixing import Drawn, MixedFile

Licence = Annotated[
    str | None,
    option("--license", help="Of rows that name none and whose layout has none, such as `apache-2.0`.", metavar="NAME"),
]


def in_short(report: Mapping[str, Any]) -> str:
    """The counts in a line: `120 rows, 2 bad, 3 duplicates; 118 of 120 graded ones solved; 60 tasks, 31 users`."""
    return (
        f"{quantity(report['rows'], 'row')}, {report['bad']} bad, {quantity(report['duplicates'], 'duplicate')}; "
        f"{report['solved']} of {report['graded']} graded ones solved; "
        f"{quantity(report['tasks'], 'task')}, {quantity(report['users'], 'user')}"
    )


MixRows = Annotated[
    int | None,
    option("--rows", help="Rows of the mix. (default: as many as the weights allow without a row twice)", min=1, metavar="N"),
]
Near = Annotated[
    float | None,
    option(
        "--near",
        help="Leave out conversations that are nearly an earlier one: of the word 3-grams of what the user said and the "
        "agent called, two such ones share at least this part (Jaccard, such as 0.9). (default: only equal ones)",
        min=0.1,
        max=1,
        metavar="X",
    ),
]


def mix(
    sources: Annotated[
        list[str],
        option(
            "--from",
            help="A file of rows and its weight in the mix; repeat for more. Without weights all rows are taken.",
            metavar="FILE[=WEIGHT]",
        ),
    ],
    output: Annotated[
        Path, option("--output", help="The file to write: `.jsonl`, `.jsonl.gz` or `.parquet`.", metavar="FILE", panel=OUTPUT)
    ],
    rows: MixRows = None,
    seed: Annotated[int, option("--seed", help="Decides which rows, and their order. (default: 0)", metavar="N")] = 0,
    licence: Licence = None,
    near: Near = None,
    skip_bad: Annotated[bool, option("--skip-bad", help="Leave out rows that cannot be read, and name them.")] = False,
    as_json: Json = False,
) -> None:
    """Mix files of rows by weight, each conversation once, into one file.

    A conversation that stands in several sources is taken from the first. Rows stay as they are, in their own layouts; their
    `metadata` gets `source`, `source_row`, `layout` and `licence` where it lacks them. `OUTPUT.mix.json` says what was read, left
    out and kept of each source. The same command gives the same bytes.

    Exits with 0 when it is written, 2 for a wrong request or a bad row.
    """
    from tau2rl.data import mixing

    named = [_source(text, licence or "") for text in sources]
    target = output.expanduser()
    written, drawn = mixing.mix(named, target, seed=seed, rows=rows, skip_bad=skip_bad, near=near)
    sources_drawn = [_drawn(source, one) for source, one in zip(named, drawn, strict=True)]
    report = {
        "file": written.file,
        "rows": written.rows,
        "sha256": written.sha256,
        "seed": seed,
        "near": near,
        "sources": sources_drawn,
    }
    write_json(target.with_name(f"{target.name}.mix.json"), report)
    for name in [name for one in drawn for name in one.bad]:
        console.say(f"left out: {name}")
    if as_json:
        console.emit_json(report)
        return
    head = ["source", "weight", "rows", "bad", "duplicates", "near", "kept", "licence"]
    body = [
        [
            one["file"],
            str(one["weight"] or "all"),
            *(str(one[key]) for key in ("read", "bad", "duplicates", "near_duplicates", "kept")),
            one["licence"],
        ]
        for one in sources_drawn
    ]
    console.emit_table([head, *body])
    console.emit(f"{shown(target)}: {quantity(written.rows, 'row')}, sha256 {written.sha256[:16]}")


def _source(text: str, licence: str) -> MixedFile:
    """What `--from` names. Raises UserError.

    >>> _source("a=b.jsonl=2", "").weight, _source("rows.jsonl", "").weight
    (2.0, None)
    """
    from tau2rl.data.mixing import MixedFile

    file, equals, weight = text.rpartition("=")
    if not equals or Path(text).expanduser().is_file():
        return MixedFile(file=Path(text), licence=licence)
    try:
        return MixedFile(file=Path(file), weight=float(weight), licence=licence)
    except ValueError:
        raise UserError(f"`{text}` has a weight that is no number", hint="`--from rows.jsonl=2`") from None


def _drawn(source: MixedFile, drawn: Drawn) -> dict[str, Any]:
    return {
        "file": str(source.file),
        "sha256": drawn.sha256,
        "weight": source.weight,
        "read": drawn.read,
        "bad": len(drawn.bad),
        "duplicates": drawn.duplicates,
        "near_duplicates": drawn.near_duplicates,
        "kept": drawn.kept,
        "licence": ", ".join(sorted(drawn.licences)),
    }


def card(
    files: Annotated[
        list[Path], typer.Argument(help="Files of rows, each of them a split.", metavar="FILE...", show_default=False)
    ],
    output: Annotated[
        Path | None,
        option("--output", help="The card to write. (default: `README.md` beside the first file)", metavar="FILE", panel=OUTPUT),
    ] = None,
    name: Annotated[str | None, option("--name", help="What the dataset is called.", metavar="TEXT")] = None,
    licence: Licence = None,
    as_json: Json = False,
) -> None:
    """Write a dataset card: licence and source of the rows, their counts, and what they share with tau2's test tasks.

    A card in Markdown with the hub's metadata, for the folder in which the files are. Every row is compared with the test tasks
    of its domain: the task itself, users, orders and reservations, writes with their arguments, runs of eight words.

    Exits with 0 when it is written, 2 for a file that cannot be read or a card of somebody else's in its place.
    """
    from tau2rl.share.dataset import describe_rows, write_row_card

    target = (output or files[0].parent / "README.md").expanduser()
    facts = describe_rows(files, licence=licence or "")
    write_row_card(target, facts, name=name or target.parent.resolve().name)
    if as_json:
        console.emit_json({"card": str(target), **facts})
        return
    console.emit(in_short(facts["all"]))
    console.emit(f"{quantity(facts['overlap']['rows'], 'row')} with something of the test tasks; {shown(target)}")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A file of WRIT-2K, AReaL-tau2-data (rows, or `tau2_rl_train.jsonl`), tau2-sft-seed-v3, or OpenAI messages.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        option(
            "--output",
            help="The file of rows to write (`.jsonl`, `.jsonl.gz`, `.parquet`); of tasks a new folder.",
            metavar="PATH",
            panel=OUTPUT,
        ),
    ],
    licence: Licence = None,
    thoughts: Annotated[
        bool, option("--thoughts/--no-thoughts", help="Keep what was thought before a turn (`reasoning_content`); the default.")
    ] = True,
    skip_bad: Annotated[bool, option("--skip-bad", help="Leave out what cannot be read, and name it.")] = False,
    as_json: Json = False,
) -> None:
    """Write a published data set as rows of tau2rl, or its tasks as files that every stage plays.

    Rows become OpenAI messages with `tools` and `metadata`, which has everything else of the row and its origin. An AReaL row
    teaches its last turn alone: the earlier ones get `"step_loss_mask": 0`. AReaL's tasks become domains, one for each database
    that they are played on, and a module for `plugins` that makes them known.

    Exits with 0 when it is written, 2 for a wrong request or a bad row.
    """
    from tau2rl.share import published_rows

    source, target, bad = file.expanduser(), output.expanduser(), list[str]()
    report = published_rows.convert_published(
        source, target, licence=licence or "", thoughts=thoughts, bad=bad if skip_bad else None
    )
    for name in bad:
        console.say(f"left out: {name}")
    if as_json:
        console.emit_json(report)
        return
    console.emit(f"{report['layout']}: {report['rows']} {report['what']}, {len(bad)} left out; {shown(target)}")
    for command in report.get("play", ()):
        console.say(f"play them:\n  {command}")
