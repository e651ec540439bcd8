"""A model card made of provenance: what the runs show, and nothing that none of them shows.

Results are those of evaluations whose agent has the checkpoint's own sha256. What nobody recorded is said to be unknown; what the
author adds (a licence, a base model on the hub) is named as theirs. `.eval_results/` has what the hub's leaderboard of tau2-bench
takes: a whole `base` split of a real domain, played against an LLM user simulator.
"""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

import tau2rl
from tau2rl.config import DOMAINS, TEST_SPLITS, EvalConfig, PipelineConfig
from tau2rl.config.extras import refuse_command
from tau2rl.env.domain import domain
from tau2rl.errors import UserError
from tau2rl.recipes.test_access import evaluated_checkpoint
from tau2rl.report.tables import printable
from tau2rl.runs.files import read_json, replacing, section, writing
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import ENVIRONMENT, checkpoint_hash
from tau2rl.runs.reports import REPORT, SELECTION, read_report, read_selection
from tau2rl.share.kept import benchmark_of, sampling_of, split_words, user_of
from tau2rl.share.lineage import Link, lineage
from tau2rl.share.render import markdown_page

Json = dict[str, Any]
REAL = tuple(name for name in DOMAINS if name != "mock")
BENCHMARK = "HuggingFaceH4/tau2-bench-data"  # the hub's dataset of the benchmark; its tasks are `tau2_bench_DOMAIN`


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One evaluation: `Evidence(path=..., config=..., report={...}, environment={...}, sha256="2556...", name="grpo")`."""

    path: Path
    config: EvalConfig
    report: Json
    environment: Json
    sha256: str  # of the checkpoint that played; "" where that is not known

    @property
    def split(self) -> str:
        """Of its tasks."""
        return split_words(self.config.tasks)

    @property
    def user(self) -> str:
        """The user simulator."""
        return user_of(self.config.user)

    def is_whole(self, name: str) -> bool:
        """Whether it played all of tau2's own tasks of a real domain."""
        return (
            name in REAL and self.split == "base" and self.report["tasks_by_domain"][name] == len(domain(name).tasks(self.split))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card before it is written: its text, the hub's results, and what is to be known of it."""

    text: str
    eval_results: str  # YAML; "" where no result is of the leaderboard's kind
    checkpoint: Path
    sha256: str
    unknown: tuple[str, ...]  # what the card says that no run shows


def make_card(
    run: Path, evaluations: Sequence[Path], *, step: str | None, license: str | None, base_model: str | None, repo: str | None
) -> Card:
    """The card of the model that a training, or a pipeline's last or named step, has made. Raises UserError."""
    for name, value in (("--license", license), ("--base-model", base_model), ("--repo", repo)):
        if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,95}", value):
            raise UserError(f"`{name}` is a name of the hub", hint="letters, digits, `.`, `_`, `-` and `/`, such as `org/model`")
    folder, of_pipeline = trained(run, step)
    chain = lineage(folder)
    made = chain[-1]
    checkpoint = made.report["outputs"]["checkpoint"]
    sha256 = str(checkpoint["sha256"])
    given = [evidence(path) for path in evaluations]
    if others := [each for each in given if each.sha256 != sha256]:
        whose = f"of sha256 {others[0].sha256[:16]}" if others[0].sha256 else "of a model whose hash is not known here"
        raise UserError(
            f"`{others[0].path}` is an evaluation {whose}, and the checkpoint is {sha256[:16]}",
            hint="a card states results of its own checkpoint alone: evaluate that one, with `--checkpoint`",
        )
    every = [*given, *(evidence(path) for path in of_pipeline if path.resolve() not in {each.path for each in given})]
    mine = [each for each in every if each.sha256 == sha256]
    looks = _looks(every, folder)
    entries = _eval_results(mine, len(looks))
    unknown = _unknown(mine, chain, license, base_model)
    text = markdown_page(
        "model.md.jinja",
        metadata=Markup(  # noqa: S704 - YAML, not a page
            _metadata(made, mine, license=license, base_model=base_model, repo=repo, looks=len(looks))
        ),
        title=repo.split("/")[-1] if repo else made.name,
        repo=repo,
        checkpoint=str(checkpoint["path"]),
        sha256=sha256,
        evaluations=[_shown(each) for each in mine],
        on_the_way=[_shown(each) for each in every if each.sha256 != sha256],
        looks=looks,
        trained_with=_version(made.environment),
        evaluated_with=sorted({_version(each.environment) for each in mine} - {""}),
        chain=chain,
        reward=_reward(chain),
        limits=_limits(mine, chain),
        unknown=unknown,
        commands=_commands(mine, repo),
        license=license,
        base_model=base_model,
        version=tau2rl.__version__,
        leaderboard=bool(entries),
    )
    return Card(text=text, eval_results=entries, checkpoint=Path(str(checkpoint["path"])), sha256=sha256, unknown=tuple(unknown))


def trained(run: Path, step: str | None) -> tuple[Path, list[Path]]:
    """The training run of the model, and the evaluations that its pipeline made. Raises UserError."""
    run = run.expanduser().absolute()
    config = read_config(run)
    report = read_report(run / REPORT) if (run / REPORT).is_file() else {}
    if not report:
        raise UserError(f"`{run}` has no report yet", hint="finish the run with `--resume`")
    if not isinstance(config, PipelineConfig):
        if not section(report, "outputs", "checkpoint"):
            raise UserError(
                f"`{run}` is a run of `{config.stage}`, which trains nothing", hint="name an sft or grpo run, or a pipeline"
            )
        if step:
            raise UserError("`--step` is of a pipeline", hint=f"`{run}` is one training")
        return run.resolve(), []
    steps: Mapping[str, Json] = {name: each for name, each in report["steps"].items() if each["stage"] in ("sft", "grpo")}
    if not steps or (step and step not in steps):
        raise UserError(
            f"no finished training step `{step or '?'}` in `{run}`", hint=f"one of: {', '.join(steps) or 'none has ended'}"
        )
    chosen = steps[step or list(steps)[-1]]
    places = [chosen["folder"], *(each["folder"] for each in report["evaluations"])]
    beside = [run / "runs" / Path(str(place)).name for place in places]
    folder, *tested = (near if near.is_dir() else Path(str(place)) for near, place in zip(beside, places, strict=True))
    return folder.resolve(), [place for place in tested if (place / REPORT).is_file()]


def evidence(path: Path) -> Evidence:
    """An evaluation, with the hash of what it evaluated. Raises UserError."""
    path = path.expanduser().absolute().resolve()
    config = read_config(path)
    if not isinstance(config, EvalConfig) or not (path / REPORT).is_file():
        raise UserError(f"`{path}` is no finished evaluation", hint="`--eval` takes the folder of an eval run")
    environment = read_json(path / ENVIRONMENT)
    agent = str(environment.get("identity", {}).get("agent", ""))
    if agent.startswith("checkpoint "):
        sha256 = agent.removeprefix("checkpoint ")
    else:
        served = evaluated_checkpoint(config, agent)
        sha256 = checkpoint_hash(served) if served and (served / "config.json").is_file() else ""
    return Evidence(path=path, config=config, report=read_report(path / REPORT), environment=environment, sha256=sha256)


def write_card(card: Card, folder: Path) -> list[Path]:
    """Write `README.md` and, where there is one, `.eval_results/tau2-bench.yaml`. Raises UserError."""
    files = {folder / "README.md": card.text}
    if card.eval_results:
        files[folder / ".eval_results" / "tau2-bench.yaml"] = card.eval_results
    for file, text in files.items():
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as out:
                out.write(text.encode("utf-8", "replace"))
    return list(files)


def _metadata(
    made: Link, mine: Sequence[Evidence], *, license: str | None, base_model: str | None, repo: str | None, looks: int
) -> str:
    """The head of the card, by the hub's own classes. Raises UserError where they are not installed."""
    ModelCardData, EvalResult = _hub("ModelCardData"), _hub("EvalResult")
    results = [
        EvalResult(
            task_type="text-generation", task_name="multi-turn tool use against a simulated user",
            dataset_type="tau2-bench", dataset_name=printable(f"tau2-bench {domain} ({each.split})"),
            dataset_config=printable(domain), dataset_split=printable(each.split),
            dataset_args=_measured(each, domain),
            metric_type=measure, metric_name=measure, metric_value=round(part[measure]["value"], 4),
            metric_args={
                "attempts": int(each.report["attempts"]), "ci95": [round(x, 4) for x in part[measure].get("ci95") or ()],
                "floor": _floor(each, domain), **({"looks_at_test_tasks": looks} if _is_test(each) else {}),
            },
        )
        for each in mine if not each.report["incomplete"]
        for domain, part in each.report["by_domain"].items()
        for measure in dict.fromkeys(("pass@1", f"pass@{each.report['attempts']}", f"pass^{each.report['attempts']}"))
        if part.get(measure, {}).get("value") is not None
    ]  # fmt: skip
    data = ModelCardData(
        model_name=printable(repo.split("/")[-1] if repo else made.name),
        eval_results=results or None,
        base_model=base_model,
        license=license,
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["tau2-bench", "tool-use", "agents", "tau2rl", made.stage],
    )
    return str(data.to_yaml()).strip()


def _measured(each: Evidence, domain: str) -> Json:
    """What makes the number comparable, for the metadata."""
    return {
        "tasks": each.report["tasks_by_domain"][domain],
        "tau2": _tau2(each),
        "user_simulator": printable(each.user),
        "protocol": printable(str(each.config.chat.protocol)),
        "thinking": each.config.chat.thinking,
    }


def _hub(name: str) -> Any:
    refuse_command("tau2rl card")
    import huggingface_hub

    return getattr(huggingface_hub, name)


def _eval_results(mine: Sequence[Evidence], looks: int) -> str:
    """YAML of `.eval_results/`: whole `base` splits of real domains, against an LLM user simulator; "" where there is none."""
    Entry, to_yaml = _hub("EvalResultEntry"), _hub("eval_result_entries_to_yaml")
    entries: list[Any] = []
    for each in mine:
        if each.report["incomplete"] or each.config.user.kind != "llm":
            continue
        for name, part in each.report["by_domain"].items():
            if each.is_whole(name):
                low, high = part["pass^1"]["ci95"]
                notes = (
                    f"pass^1 in percent, 95% interval {100 * low:.1f} to {100 * high:.1f}, {each.report['attempts']} attempts a "
                    f"task, user simulator {each.user}, protocol {each.config.chat.protocol}, "
                    f"thinking {each.config.chat.thinking}, {_tau2(each)}, test tasks looked at {looks} times"
                )
                value = round(100 * part["pass^1"]["value"], 2)
                entries.append(Entry(dataset_id=BENCHMARK, task_id=f"tau2_bench_{name}", value=value, notes=printable(notes)))
    return str(yaml.safe_dump(to_yaml(entries), sort_keys=False, allow_unicode=True)) if entries else ""


def _shown(each: Evidence) -> Json:
    """What the card's tables say of an evaluation."""
    return {
        "name": each.config.name,
        "report": each.report,
        "split": each.split,
        "user": each.user,
        "protocol": each.config.chat.protocol,
        "thinking": each.config.chat.thinking,
        "tau2": _tau2(each),
        "attempts": int(each.report["attempts"]),
        "sampling": sampling_of(each.config),
        "played_by": each.config.policy.kind,
        "floors": {domain: _floor(each, domain) for domain in each.report["by_domain"]},
        "model": each.sha256[:16] or "not known",
    }


def _tau2(each: Evidence) -> str:
    return printable(benchmark_of(each.environment) or "not recorded")


def _floor(each: Evidence, domain: str) -> float | None:
    known = [value for value in each.report["floor_by_domain"].get(domain, {}).values() if value is not None]
    return max(known, default=None)


def _looks(every: Sequence[Evidence], folder: Path) -> list[str]:
    """Each evaluation that looked at test tasks, of this model or of those on the way to it; grading one again is no look."""
    words, played, digests = list[str](), set[Path](), set[str]()
    for each in filter(_is_test, every):
        again = section(each.report, "regraded_from")
        run = Path(str(again["run"])).resolve() if again else each.path
        if run not in played:
            words.append(f"{each.config.name} ({each.split}), digest {each.report['digest']}")
        played.add(run)
        digests |= {str(each.report["digest"]), str(again.get("digest", ""))}
    selection = read_selection(folder / SELECTION) if (folder / SELECTION).is_file() else {}
    logged: Sequence[Json] = selection.get("test_access_log", ())
    return words + [
        f"{Path(str(entry['run'])).name}, digest {entry['digest']}: in the test-set access log"
        for entry in logged
        if str(entry["digest"]) not in digests
    ]


def _is_test(each: Evidence) -> bool:
    return each.config.tasks.split in TEST_SPLITS


def _version(environment: Json) -> str:
    """Of tau2rl, as the run recorded it; "" where it did not."""
    return str(section(environment, "recorded", "libraries").get("tau2rl", ""))


def _reward(chain: Sequence[Link]) -> list[Json]:
    """The reward recipe of each training by reinforcement."""
    return [
        {"name": link.name, **{k.partition(".")[2]: v for k, v in link.settings.items() if k.startswith(("reward.", "algo."))}}
        for link in chain
        if link.stage == "grpo"
    ]


def _limits(mine: Sequence[Evidence], chain: Sequence[Link]) -> list[str]:
    lines: list[str] = []
    domains = {domain for each in mine if not each.report["incomplete"] for domain in each.report["by_domain"]}
    if any(each.config.user.kind == "scripted" for each in mine):
        lines.append("A scripted user simulator answered in some evaluations: such a score is no tau2-bench score.")
    if strangers := sorted(domains - set(REAL)):
        lines.append(f"Results on {', '.join(strangers)} say nothing about airline, retail or telecom.")
    if missing := sorted(set(REAL) - domains):
        lines.append(f"Not evaluated on {', '.join(missing)}.")
    if domains:
        lines.append(
            "The intervals are of the tasks: how far another training with the same settings would end was not measured."
        )
    if any(link.settings.get("allow_held_out") for link in chain):
        lines.append("Tasks that are kept for tests were allowed among its training data.")
    return [*lines, "No safety, no other language and no other tools were evaluated."]


def _unknown(mine: Sequence[Evidence], chain: Sequence[Link], license: str | None, base_model: str | None) -> list[str]:
    """What a reader would like to know, and no run shows."""
    out: list[str] = []
    if not mine:
        out.append("how well it does: no evaluation of this checkpoint was given (--eval)")
    elif all(each.config.policy.kind != "sglang" for each in mine):
        out.append("that a server serves it: in its evaluations the model was played otherwise (played by)")
    if not all(link.environment for link in chain):
        out.append("what some of the runs of its chain stood on: their environment.json is gone")
    out += [f"the result of {each.config.name}: {each.report['reason']}" for each in mine if each.report["incomplete"]]
    started = [each for link in chain for each in link.inputs if each.what == "model" and each.made_by is None]
    if started and not base_model:
        out.append(f"which model of the hub it began as: the runs have its hash alone, {started[0].sha256[:16]} (--base-model)")
    if any(each.what == "data" and each.made_by is None for link in chain for each in link.inputs):
        out.append("who made some of its training data: the files are known by their hashes alone")
    if license is None:
        out.append("its licence (--license)")
    return out


def _commands(mine: Sequence[Evidence], repo: str | None) -> list[str]:
    """How to serve it, and how to score it as it was scored here."""
    where = repo or "MODEL_DIR"
    lines = [f"python -m sglang.launch_server --model-path {where} --port 30000"]
    for each in mine:
        config, tasks = each.config, each.config.tasks
        user = shlex.quote(config.user.model if config.user.kind == "llm" else config.user.kind)
        domains, split, protocol = (shlex.quote(word) for word in (",".join(tasks.domains), tasks.split, config.chat.protocol))
        words = [
            f"tau2rl eval --policy sglang --url http://127.0.0.1:30000 --tokenizer {where} --protocol {protocol}",
            f"--domains {domains} --task-split {split}", *([f"--limit {tasks.limit}"] if tasks.limit else []),
            f"--user-model {user} --num-samples {config.rollout.num_samples} --seed {config.seed}",
            *([f"--repetitions {config.repetitions}"] if config.repetitions > 1 else []),
            f"--temperature {config.policy.sampling.temperature:g} --top-p {config.policy.sampling.top_p:g}",
            f"--set chat.thinking={config.chat.thinking} --set policy.sampling.max_tokens={config.policy.sampling.max_tokens}",
            f"--set limits.max_turns={config.limits.max_turns} --set limits.context_tokens={config.limits.context_tokens}",
            f"--set limits.repairs={config.limits.repairs} --max-steps {config.limits.max_steps}",
        ]  # fmt: skip
        lines.append(printable(" ".join(words)).replace("`", "'"))  # it stands in a block of code
    return lines
