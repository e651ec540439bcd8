"""`tau2rl config show|diff`: what every setting is, and how two configs differ."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tau2rl import console
from tau2rl.cli.lazy import examples
from tau2rl.cli.options import RUN, ConfigFile, Json, Sets
from tau2rl.config import STAGES, Section, StageConfig, build, dump, flatten, load_config, read_config_file
from tau2rl.errors import UserError

app = typer.Typer(help="Look at settings.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "tau2rl config show", "tau2rl config show -c configs/eval/gold.yaml --set seed=7", "tau2rl config show > mine.yaml"
    )
)
def show(
    stage: Annotated[str, typer.Option("--stage", help=f"Of {', '.join(STAGES)}.", metavar="NAME", rich_help_panel=RUN)] = "eval",
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print every setting of a stage, resolved, with what it means.

    The output is a config file. Without -c and --set it holds the defaults.
    """
    model = _stage(stage)
    # The defaults alone need not make a valid run: which tokenizer, for example, nobody can guess.
    chosen = load_config(model, config, sets or ()) if config or sets else model.model_construct()
    if as_json:
        console.emit_json(dump(chosen))
    else:
        console.emit("\n".join(documented(chosen)))


@app.command(epilog=examples("tau2rl config diff configs/eval/gold.yaml outputs/eval/gold"))
def diff(
    a: Annotated[Path, typer.Argument(help="A config file or a run folder.", metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="B", show_default=False)],
    as_json: Json = False,
) -> None:
    """List the settings in which two configs differ, defaults included.

    Exits with 0 when there are none and with 1 when there are some.
    """
    left, right = flatten(dump(_read(a))), flatten(dump(_read(b)))
    keys = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]
    if as_json:
        console.emit_json({"differences": [{"key": key, "a": left.get(key), "b": right.get(key)} for key in keys]})
    elif keys:
        console.emit_table([["setting", str(a), str(b)], *([key, _word(left.get(key)), _word(right.get(key))] for key in keys)])
    else:
        console.say("no setting differs")
    raise typer.Exit(1 if keys else 0)


def documented(section: Section, indent: str = "") -> Iterator[str]:
    """The lines of a config as YAML, each setting below its documentation.

    >>> from tau2rl.config import ChatConfig
    >>> [line for line in documented(ChatConfig(tokenizer="bytes")) if "tokenizer" in line][-1]
    'tokenizer: bytes'
    """
    values = dump(section)
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        nested = isinstance(value, Section)
        text = info.description or (type(value).__doc__ if nested else "") or ""
        if nested and not indent:
            yield ""
        for line in textwrap.wrap(" ".join(text.split()), 120 - len(indent), break_on_hyphens=False, break_long_words=False):
            yield f"{indent}# {line}"
        if nested:
            yield f"{indent}{name}:"
            yield from documented(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_word(values[name])}"


def _read(path: Path) -> StageConfig:
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"`{path}` is not a run folder: it has no `config.json`")
    model = _stage(str(read_config_file(file).get("stage", "eval")))
    return build(model, read_config_file(file, model), stored=path.is_dir())


def _stage(name: str) -> type[StageConfig]:
    if name not in STAGES:
        raise UserError(f"no such stage `{name}`", hint=f"one of: {', '.join(STAGES)}")
    return STAGES[name]


def _word(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
