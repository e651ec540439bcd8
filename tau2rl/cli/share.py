"""`tau2rl regrade`, `export`, `import`, `card` and `push`: a finished run graded again, handed to other tools and the hub."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tau2rl import console
from tau2rl.cli.options import OUTPUT, Json, RunDir, Sets, option
from tau2rl.cli.printing import print_report, shown
from tau2rl.errors import UserError
from tau2rl.report.tables import quantity
from tau2rl.runs.claim import claimed
from tau2rl.runs.files import write_json
from tau2rl.runs.folder import RunFolder, run_path

if TYPE_CHECKING:
    from tau2rl.share.kept import KeptRun


def regrade(
    run: RunDir,
    reward: Annotated[str | None, option("--reward", help="The preset of the score. (`reward.preset`)", metavar="NAME")] = None,
    exclude_quarantined: Annotated[
        bool | None,
        option(
            "--exclude-quarantined/--include-quarantined",
            help="Leave out tasks with known defects. (`tasks.exclude_quarantined`)",
        ),
    ] = None,
    sets: Sets = None,
    name: Annotated[
        str | None,
        option(
            "--name",
            help="The new run folder is `outputs/eval/NAME`. (default: the run's, with `-regraded`)",
            metavar="NAME",
            panel=OUTPUT,
        ),
    ] = None,
    output: Annotated[Path | None, option("--output", help="The new run folder.", metavar="PATH", panel=OUTPUT)] = None,
    as_json: Json = False,
) -> None:
    """Grade the kept conversations of an evaluation again, by other reward settings, into a new run folder.

    tau2 carries out each conversation's tool calls again and grades it; no model and no server is asked. `reward.*` and
    `tasks.exclude_quarantined` may change, everything else was decided when the conversations were played. The run itself is
    not touched; the new folder is an evaluation whose `environment.json` names it. A conversation that cannot be graded any
    more (its tools answer otherwise than they did) is FAILED, and no number.

    Exits with 0 when every attempt was graded, 1 when the result is incomplete, 2 for a wrong request.
    """
    from tau2rl.launch.entry import load_plugins
    from tau2rl.recipes import regrade as recipe
    from tau2rl.runs.folder import read_config

    source = run.expanduser().absolute()
    before = read_config(source)
    load_plugins(before.plugins)
    options = {"reward.preset": reward, "tasks.exclude_quarantined": exclude_quarantined, "output": output}
    config = recipe.config_of(source, sets or (), {**options, "name": name or f"{before.name}-regraded"})
    target = run_path(config)
    if target.resolve() == source.resolve():
        raise UserError("a run is not graded again in its own folder", hint="choose another `--name` or `--output`")
    with claimed(target, config, resume=False) as claim, RunFolder.open(claim.path) as folder, console.Follower() as follower:
        began, cpu = time.monotonic(), time.process_time()
        done = recipe.regrade_run(source, config, folder, follower.on_progress)
        write_json(folder.usage, {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu})
    if as_json:
        console.emit_json({**done.report, "run": str(target), "other_data": list(done.data)})
    else:
        print_report(done.report, target)
        console.emit(f"graded again: {done.changed} rewards differ from those of `{shown(source)}`; {shown(target)}")
    if done.data:
        console.say(f"warning: the benchmark's data are not those of the run: {', '.join(done.data)}")
    raise typer.Exit(1 if done.report["incomplete"] else 0)


OTHERS = ("tau2", "trl", "hf", "inspect", "atif")


def export(
    run: RunDir,
    to: Annotated[str, typer.Option("--to", help="tau2, trl, hf, inspect or atif.", metavar="LAYOUT", show_default=False)],
    output: Annotated[
        Path | None,
        option(
            "--output", help="The folder to write to. (default: `export/LAYOUT` in the run folder)", metavar="DIR", panel=OUTPUT
        ),
    ] = None,
    keep: Annotated[
        str,
        option("--keep", help="trl, hf: `solved`, what tau2 graded 1 (the default), or `all` that it graded.", metavar="NAME"),
    ] = "solved",
    allow_held_out: Annotated[
        bool, option("--allow-held-out", help="trl, hf: rows on tasks that are kept for tests too; the card says so.")
    ] = False,
    license: Annotated[
        str | None, option("--license", help="hf: what the dataset's card says, such as `apache-2.0`.", metavar="NAME")
    ] = None,
    parquet: Annotated[bool, option("--parquet", help="hf: Parquet files in place of JSON lines.")] = False,
    as_json: Json = False,
) -> None:
    """Write the conversations of a run in the layout of another tool: tau2, trl, hf, inspect or atif.

    `tau2`: a `results.json` a domain, which tau2's own viewer, grader and submission check read. `trl`: `messages` and `tools`,
    a JSONL file a split. `hf`: the same as a dataset folder with a card, for the Hugging Face hub. `inspect`: a log that
    `inspect view` opens. `atif`: harbor's trajectories. What has no place there is left out and counted; the run stays as it is.

    Exits with 0 when it is written, 2 for a wrong request.
    """
    from tau2rl.launch.entry import load_plugins
    from tau2rl.share.kept import kept_run

    if to not in OTHERS:
        raise UserError(f"no such layout `{to}`", hint=f"`--to` one of: {', '.join(OTHERS)}")
    if keep not in ("solved", "all"):
        raise UserError(f"no such choice `{keep}`", hint="`--keep solved` or `--keep all`")
    if parquet and to != "hf":
        raise UserError(f"`--parquet` is for `--to hf`: `{to}` has files of its own kind")
    source = kept_run(run)
    load_plugins(source.config.plugins)
    folder = (output or source.path / "export" / to).expanduser().absolute()
    files, left_out = _write(source, to, folder, keep=keep, allow_held_out=allow_held_out, license=license, parquet=parquet)
    if as_json:
        console.emit_json({"files": {str(file): count for file, count in files.items()}, "left_out": left_out})
        return
    for file, count in files.items():
        console.emit(f"{shown(file)}: {quantity(count, 'episode')}")
    if left_out:
        console.say("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))


def _write(
    source: KeptRun, to: str, folder: Path, *, keep: str, allow_held_out: bool, license: str | None, parquet: bool
) -> tuple[dict[Path, int], dict[str, int]]:
    """Write one layout: each file with its number of episodes, and what was left out by its reason. Raises UserError."""
    match to:
        case "tau2":
            from tau2rl.share import tau2_results

            done = tau2_results.export(source, folder)
            return done.files, dict(done.left_out)
        case "trl" | "hf":
            from tau2rl.share import dataset

            written = dataset.export(
                source, folder, layout=to, keep=keep, allow_held_out=allow_held_out, license=license, parquet=parquet
            )
            return {file: written.counts[split].rows for split, file in written.files.items()}, dict(written.left_out)
        case "inspect":
            from tau2rl.share import inspect_log

            return inspect_log.export(source, folder), {}
        case _:
            from tau2rl.share import atif

            return atif.export(source, folder), {}


def import_(
    file: Annotated[
        Path,
        typer.Argument(help="tau2's `results.json`, or the pass@k JSON of Tau2-RL-Pipeline.", metavar="FILE", show_default=False),
    ],
    name: Annotated[
        str | None,
        option("--name", help="The run folder is `outputs/eval/NAME`. (default: the file's name)", metavar="NAME", panel=OUTPUT),
    ] = None,
    output: Annotated[Path | None, option("--output", help="The run folder.", metavar="PATH", panel=OUTPUT)] = None,
    split: Annotated[
        str | None,
        option("--task-split", help="The split of its tasks. (default: the smallest that has them all)", metavar="NAME"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a run folder of another program's results, so that `report`, `compare`, `show` and `view` open them.

    What the file does not say stays unsaid: no tokens, and no floors where its tasks are not those of the installed tau2. Samples
    that were skipped, aborted or never graded are FAILED, and no zeros.

    Exits with 0 when every attempt has a grade, 1 when the result is incomplete, 2 for a file that cannot be read.
    """
    from tau2rl.share import imported

    foreign = imported.read_foreign(file.expanduser(), split=split)
    target, report = imported.into_run(file.expanduser().absolute(), foreign, name=name or file.stem, output=output)
    if as_json:
        console.emit_json({**report, "run": str(target)})
    else:
        print_report(report, target)
        console.emit(f"{foreign.layout}, {quantity(len(foreign.episodes), 'episode')}: {shown(target)}")
    if foreign.other_tasks:
        others = quantity(len(foreign.other_tasks), "task")
        console.say(f"warning: the installed tau2 has {others} otherwise or not at all; no floors are given")
    raise typer.Exit(1 if report["incomplete"] else 0)


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
