"""From a trained checkpoint back to its data: which run made each input, found by path and proved by sha256."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.config import StageConfig, dump, flatten
from tau2rl.runs.checkpoints import training_run
from tau2rl.runs.files import read_json, section
from tau2rl.runs.folder import read_config, stage_of
from tau2rl.runs.provenance import ENVIRONMENT
from tau2rl.runs.reports import REPORT, read_report

Json = dict[str, Any]
_TASKS = ("tasks.domains", "tasks.split", "tasks.limit", "allow_held_out")
_USER = ("user.kind", "user.model", "user.temperature")
SHOWN = {  # what a reader asks of a stage: its settings by their dotted names
    "seed": ("policy.kind", "policy.model", *_TASKS, "rollout.num_samples", "keep", "noise_prob", *_USER, "chat.protocol"),
    "rft-filter": (*_TASKS, "rollout.num_samples", "policy.sampling.temperature", "keep.attempts", "keep.per_task", *_USER,
                   "reward.preset", "chat.protocol"),
    "sft": ("train.steps", "train.lr", "train.batch_size", "data.max_tokens", "chat.thinking", "backend", "local.lora.rank"),
    "grpo": (*_TASKS, "train.steps", "train.lr", "train.tasks_per_step", "rollout.num_samples", "algo.estimator",
             "reward.preset", "reward.alpha", "reward.terms", *_USER, "sampling.temperature", "chat.protocol", "chat.thinking",
             "backend", "local.lora.rank"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One run of the chain: `Link(path=..., stage="grpo", outputs=("2556...",), inputs=(Input(...),), settings={...}, ...)`."""

    path: Path
    name: str
    stage: str
    digest: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]  # sha256
    settings: dict[str, Any]
    report: Json
    environment: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What went in: `Input(what="model", path="/.../final", sha256="0eb3...", made_by=Path(".../06-rft"))`."""

    what: str  # `model`, `random weights`, `data` or `episodes`
    path: str
    sha256: str
    made_by: Path | None  # the run whose output has this hash; None: from outside, or not found

    @property
    def words(self) -> str:
        """In a line."""
        if self.what == "random weights":
            return f"{self.what} {self.sha256[:16]}"
        return f"{self.what} {self.sha256[:16]} {f'of {self.made_by.name}' if self.made_by else 'from outside'}"


def lineage(run: Path) -> list[Link]:
    """The chain that ends with this run, the first run first. Raises UserError for a folder that is no finished run."""
    links: dict[Path, Link] = {}

    def visit(folder: Path) -> None:
        if folder in links:
            return
        link = _link(folder)
        links[folder] = link  # before its parents: a run that names itself ends here
        for each in link.inputs:
            if each.made_by and each.made_by != folder:
                visit(each.made_by)
        links[folder] = links.pop(folder)  # behind them

    visit(run.resolve())
    return list(links.values())


def _link(folder: Path) -> Link:
    config, report = read_config(folder), read_report(folder / REPORT)
    environment = read_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {}
    stage = stage_of(config)
    values = flatten(dump(config))
    return Link(
        path=folder,
        name=config.name,
        stage=stage,
        digest=str(report.get("digest", "")),
        inputs=tuple(_inputs(folder, config, report, environment)),
        outputs=_outputs(report),
        settings={key: values[key] for key in SHOWN.get(stage, ()) if _says_something(key, values)},
        report=report,
        environment=environment,
    )


def _says_something(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting was given, and acts: a scripted user simulator has no model."""
    idle = key in ("user.model", "user.temperature") and values.get("user.kind") != "llm"
    return not idle and values.get(key) not in (None, [], (), {}, "", False)


def _outputs(report: Mapping[str, Any]) -> tuple[str, ...]:
    """sha256 of the checkpoint, or of the files of rows and the episodes behind them."""
    if checkpoint := section(report, "outputs", "checkpoint"):
        return (str(checkpoint["sha256"]),)
    files = [str(file["sha256"]) for file in report.get("files", {}).values()]
    return tuple(files + [str(source["episodes_sha256"]) for source in report.get("sources", ())])


def _inputs(folder: Path, config: StageConfig, report: Mapping[str, Any], environment: Mapping[str, Any]) -> Iterator[Input]:
    given: Mapping[str, Any] = report.get("inputs") or {}
    for each in given.get("data", ()):
        yield _input("data", each, Path(each["path"]).parent, folder)
    if parent := given.get("parent"):
        tiny = section(dump(config), "model").get("init") == "tiny"
        yield _input("random weights" if tiny else "model", parent, training_run(Path(parent["path"])), folder)
    for source in report.get("sources", ()):
        if Path(source["path"]).name != folder.name:
            yield _input("episodes", {"path": source["path"], "sha256": source["episodes_sha256"]}, Path(source["path"]), folder)
    agent = str(section(environment, "identity").get("agent", ""))
    checkpoint = section(dump(config), "policy").get("checkpoint")
    if agent.startswith("checkpoint ") and checkpoint:
        found = {"path": str(checkpoint), "sha256": agent.removeprefix("checkpoint ")}
        yield _input("model", found, training_run(Path(str(checkpoint))), folder)


def _input(what: str, described: Mapping[str, Any], made_by: Path | None, near: Path) -> Input:
    """An input, with the run that made it where that run's own report has the same hash."""
    sha256, maker = str(described["sha256"]), None
    for place in (made_by, near.parent / made_by.name) if made_by else ():  # where it was, or beside, when the whole was moved
        if (place / REPORT).is_file() and (place / "config.json").is_file() and sha256 in _outputs(read_report(place / REPORT)):
            maker = place.resolve()
            break
    return Input(what=what, path=str(described["path"]), sha256=sha256, made_by=maker)
