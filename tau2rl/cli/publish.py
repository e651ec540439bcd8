"""`tau2rl card` and `tau2rl push`: a model with what its runs show of it, for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tau2rl import console
from tau2rl.cli.options import OUTPUT, Json, option
from tau2rl.cli.printing import shown

TrainingRun = Annotated[Path, typer.Argument(help="A training run or a pipeline.", metavar="RUN_DIR", show_default=False)]
Evaluations = Annotated[
    list[Path] | None,
    option("--eval", help="An evaluation of this checkpoint; repeat for more. A pipeline has its own.", metavar="RUN_DIR"),
]
Step = Annotated[str | None, option("--step", help="Of a pipeline. (default: the last that trains)", metavar="NAME")]
License = Annotated[str | None, option("--license", help="Yours to say, such as `apache-2.0`.", metavar="NAME")]
BaseModel = Annotated[str | None, option("--base-model", help="Yours to say: its name on the hub.", metavar="ORG/NAME")]


def card(
    run: TrainingRun,
    evaluations: Evaluations = None,
    step: Step = None,
    license: License = None,
    base_model: BaseModel = None,
    repo: Annotated[
        str | None, option("--repo", help="The model's name on the hub, for its commands.", metavar="ORG/NAME")
    ] = None,
    output: Annotated[
        Path | None, option("--output", help="The folder. (default: `card` in the run folder)", metavar="DIR", panel=OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a Hugging Face model card from what the runs recorded, and name what no run shows.

    It has results, the chain from data to checkpoint, limits and commands. Results are those of evaluations whose agent had this
    very checkpoint, by sha256; another one is refused. Test tasks that were looked at more than once are marked.
    `README.md` has a `model-index`; `.eval_results/tau2-bench.yaml` is written for results that the hub's leaderboard takes.

    Exits with 0 when it is written, 2 for a wrong request.
    """
    from tau2rl.share import card as cards

    made = cards.make_card(run, evaluations or (), step=step, license=license, base_model=base_model, repo=repo)
    folder = (output or run.expanduser().absolute() / "card").expanduser().absolute()
    files = cards.write_card(made, folder)
    if as_json:
        told = {"checkpoint": str(made.checkpoint), "sha256": made.sha256, "not_shown": list(made.unknown)}
        console.emit_json({"files": [str(file) for file in files], **told})
        return
    console.emit("\n".join(shown(file) for file in files))
    for line in made.unknown:
        console.say(f"no run shows {line}")


def push(
    run: TrainingRun,
    repo: Annotated[str, option("--repo", help="The model's name on the hub.", metavar="ORG/NAME")],
    evaluations: Evaluations = None,
    step: Step = None,
    license: License = None,
    base_model: BaseModel = None,
    public: Annotated[bool, option("--public", help="Make a new repository public; else it is private.")] = False,
    dry_run: Annotated[
        bool, option("--dry-run/--upload", help="Say what would be uploaded; upload nothing. (default)", panel=OUTPUT)
    ] = True,
    as_json: Json = False,
) -> None:
    """Upload a checkpoint with its card to the Hugging Face hub. By default it uploads nothing and says what it would.

    The model's files, `README.md` and `.eval_results/` go up as one commit, by huggingface_hub with the login that it has.
    The checkpoint must still have the hash that its run recorded. A file that holds the value of a secret is refused, and so is a
    public repository without `--public`.

    Exits with 0 when it is done or shown, 1 when the hub refused, 2 for a wrong request.
    """
    from tau2rl.share import card as cards, hub

    made = cards.make_card(run, evaluations or (), step=step, license=license, base_model=base_model, repo=repo)
    files = hub.hub_files(made, run.expanduser().absolute())
    address = None if dry_run else hub.upload(repo, files, private=not public)
    sizes = {name: hub.size_of(content) for name, content in files.items()}
    if as_json:
        told = {"repo": repo, "uploaded": not dry_run, "address": address, "private": not public, "files": sizes}
        console.emit_json({**told, "not_shown": list(made.unknown)})
        return
    console.emit_table([["file", "bytes"], *([name, f"{size:,}"] for name, size in sizes.items())])
    whose = "a public repository" if public else "private where it is new"
    last = f"would go to {repo} ({whose}); `--upload` uploads them" if dry_run else f"went to {address}"
    console.emit(f"{sum(sizes.values()):,} bytes {last}")
    for line in made.unknown:
        console.say(f"no run shows {line}")
