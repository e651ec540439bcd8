"""`tau2rl convert`: between Megatron's checkpoints and Hugging Face's layout."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tau2rl import console, settings
from tau2rl.cli.options import OUTPUT, Json
from tau2rl.config import SlimeConfig
from tau2rl.errors import RunIncomplete, UserError

DEFAULTS = SlimeConfig()
CONTAINER = "The container"


def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A run folder, a folder that Megatron saved in, or a Hugging Face directory.", show_default=False),
    ],
    destination: Annotated[Path, typer.Argument(help="A folder that is not there yet.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="`hf` or `megatron`.", metavar="LAYOUT", show_default=False)],
    origin: Annotated[
        Path | None,
        typer.Option(
            "--origin",
            help="`--to hf`: the Hugging Face directory that the training started from; a run folder knows it.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    slime_root: Annotated[
        Path, typer.Option("--slime-root", help="The checkout of slime.", metavar="DIR", rich_help_panel=CONTAINER)
    ] = DEFAULTS.root,
    megatron_root: Annotated[
        Path, typer.Option("--megatron-root", help="The checkout of Megatron-LM.", metavar="DIR", rich_help_panel=CONTAINER)
    ] = DEFAULTS.megatron,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command; convert nothing.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint with slime's own tools, in slime's container. To Megatron's layout it takes a GPU.

    Trainings need neither way: they start from Hugging Face directories and leave one beside every save.

    Exits with 0 when the checkpoint is written, 1 when the tool failed, 2 for a wrong request.
    """
    from tau2rl.slime.checkpoints import to_hf, to_megatron
    from tau2rl.slime.process import run_child

    slime = SlimeConfig(root=slime_root, megatron=megatron_root)
    source, destination = source.expanduser().absolute(), destination.expanduser().absolute()
    match to:
        case "hf":
            asked = to_hf(source, destination, origin and origin.expanduser().absolute(), slime)
        case "megatron":
            asked = to_megatron(source, destination, slime)
        case _:
            raise UserError(f"no such layout `{to}`", hint="`--to hf` or `--to megatron`")
    if dry_run and as_json:
        console.emit_json({"argv": asked.command, "environment": asked.environment})
    elif dry_run:
        variables = [f"{name}={shlex.quote(value)}" for name, value in asked.environment.items()]
        console.emit(f"{' '.join(variables)} {shlex.join(asked.command)}")
    else:
        code = run_child(
            asked.command, environment=settings.child_environment(asked.environment), on_line=console.say, cwd=Path.cwd()
        )
        if code:
            raise RunIncomplete(f"the tool ended with exit code {code}; `{destination}` is not a checkpoint")
        if as_json:
            console.emit_json({"checkpoint": str(asked.result)})
        else:
            console.emit(str(asked.result))
