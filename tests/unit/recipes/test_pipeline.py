"""A pipeline, from its file to its table; pinned here:

- every run's config is known, and refused where it is wrong, before the first one starts;
- a step starts from the rows and the checkpoint of the steps that it names, and only of earlier ones;
- (in this process) the whole laptop chain holds: the inputs of each run are, by hash, the outputs of its parents;
- branches: several trainings begin with one model, evaluated once, and take rows of one seed run; their evaluations are
  compared in pairs; each rises over the model that it was trained from, and costs what it needed since then;
- every run says what it cost, in its report and in a line, and the chain sums them up;
- started again it plays nothing again; a run that is missing, and only that, is made again;
- what a finished step had left and a later run needs is named where it is gone, with the runs to be made again;
- with other settings it is refused;
- `tau2rl report` prints the result of every run of the chain and of the chain itself, and names what is left of one that broke.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, GrpoConfig, PipelineConfig, RftConfig, SftConfig, build, load_config
from tau2rl.errors import UserError
from tau2rl.launch.checks import refuse_lost
from tau2rl.recipes.pipeline_plan import Planned, plan_pipeline, with_files
from tau2rl.recipes.pipeline_report import build_pipeline_report, chain
from tau2rl.report.tables import duration

CONFIGS = Path(__file__).parents[3] / "configs"
LAPTOP, RECIPE = CONFIGS / "laptop" / "pipeline.yaml", CONFIGS / "recipes" / "teacher-data-laptop.yaml"
runner = CliRunner()


def planned(**values: Any) -> list[Planned]:
    config = build(PipelineConfig, values)
    return plan_pipeline(with_files(config, LAPTOP.parent), Path("/runs"))


def laptop(**overrides: Any) -> dict[str, Planned]:
    config = with_files(load_config(PipelineConfig, LAPTOP, (), overrides), LAPTOP.parent)
    return {f"{run.kind}:{run.name}": run for run in plan_pipeline(config, Path("/runs"))}


def test_each_step_starts_from_what_it_names() -> None:
    runs = laptop()
    assert list(runs) == [
        "step:seed", "step:sft", "evaluation:base", "evaluation:sft", "step:rft-filter", "step:rft", "evaluation:rft",
        "step:grpo", "evaluation:grpo",
    ]  # fmt: skip
    sft, rft, grpo, last = (runs[f"{name}"].config for name in ("step:sft", "step:rft", "step:grpo", "evaluation:grpo"))
    assert isinstance(sft, SftConfig) and isinstance(rft, SftConfig)
    assert sft.data.files == (Path("/runs/runs/01-seed/rows.jsonl"),)
    assert rft.data.files == (Path("/runs/runs/05-rft-filter/sft.jsonl"),)
    assert rft.model.init == "/runs/runs/02-sft/checkpoints/final"
    assert isinstance(grpo, GrpoConfig)
    assert grpo.model.init == grpo.chat.tokenizer == "/runs/runs/06-rft/checkpoints/final"
    assert isinstance(last, EvalConfig)
    assert last.policy.checkpoint == Path("/runs/runs/08-grpo/checkpoints/final")
    assert runs["evaluation:base"].config.model_dump()["policy"]["checkpoint"] == Path("/runs/runs/02-sft/checkpoints/initial")


def test_the_pipelines_own_settings_win() -> None:
    runs = laptop(**{"seed": 5, "steps.grpo.settings.train.lr": 0.5, "limit": 2})
    grpo, seed = runs["step:grpo"].config, runs["step:seed"].config
    assert isinstance(grpo, GrpoConfig)
    assert (grpo.train.lr, grpo.train.tasks_per_step, grpo.rollout.num_samples, grpo.seed) == (0.5, 2, 8, 5)
    assert seed.model_dump()["tasks"]["limit"] == 2


def test_train_and_test_tasks_of_the_laptop_chain_are_apart() -> None:
    runs = {name: run.config.model_dump().get("tasks") for name, run in laptop().items()}
    spans = [runs[name] for name in ("step:seed", "step:rft-filter", "step:grpo")]
    assert {span["split"] for span in spans} == {"synth-train"}
    assert [(span["skip"], span["skip"] + (span["limit"] or 3000)) for span in spans] == [(0, 1500), (1500, 2000), (2000, 5000)]
    assert {runs[name]["split"] for name in runs if name.startswith("evaluation")} == {"synth-test"}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({}, "has no steps"),
        ({"base": {"stage": "seed"}}, "`base` cannot name a step"),
        ({"base-b": {"stage": "seed"}}, "`base-b` cannot name a step"),
        ({"a": {"stage": "rft-filter", "sources": ["seed"]}}, "step `a` needs `seed`"),
        ({"a": {"stage": "seed"}, "b": {"stage": "sft", "start": "a"}}, "step `b` needs `a`"),
        ({"a": {"stage": "sft"}, "b": {"stage": "seed", "start": "a"}}, "`start` is for a training"),
        ({"a/b": {"stage": "seed"}}, "`a/b` cannot name a step"),
        ({"sft": {"stage": "sft", "data": ["seed"]}}, "step `sft` needs `seed`"),
        ({"a": {"stage": "seed"}, "b": {"stage": "sft", "model": "a"}}, "step `b` needs `a`"),
        ({"a": {"stage": "seed", "settings": {"slips": 1}}}, "step `a`: no such setting `slips`"),
        ({"a": {"stage": "seed", "file": "sft.yaml"}}, "is of stage `sft`"),
    ],
)
def test_a_wrong_step_is_refused_before_anything_runs(steps: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(steps=steps)


def test_branches_take_the_rows_of_one_seed_run_and_begin_with_one_model() -> None:
    config = with_files(load_config(PipelineConfig, RECIPE, ()), RECIPE.parent)
    runs = {run.label: run for run in plan_pipeline(config, Path("/runs"))}
    assert list(runs) == [
        "seed", "rows-subset", "rows-solved", "sft-all", "base-eval", "sft-all-eval", "sft-subset", "sft-subset-eval",
        "sft-solved", "sft-solved-eval",
    ]  # fmt: skip
    filters = [runs[name].config for name in ("rows-subset", "rows-solved")]
    assert all(isinstance(one, RftConfig) and one.sources == (Path("/runs/runs/01-seed"),) for one in filters)
    trainings = [runs[name].config for name in ("sft-all", "sft-subset", "sft-solved")]
    begun = [one.model.init for one in trainings if isinstance(one, SftConfig)]
    assert begun == ["tiny", *["/runs/runs/04-sft-all/checkpoints/initial"] * 2]
    assert {run.over for name, run in runs.items() if name.startswith("sft") and name.endswith("-eval")} == {"base"}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("recipes/*.yaml")), ids=lambda file: file.name)
def test_every_recipe_can_be_planned(file: Path) -> None:
    config = with_files(load_config(PipelineConfig, file, ()), file.parent)
    runs = plan_pipeline(config, Path("/runs"))
    trained = {run.name: run.config for run in runs if isinstance(run.config, SftConfig)}
    assert set(config.compare) == set(trained)  # the same training but for its rows
    assert len({one.train.model_dump_json() for one in trained.values()}) == 1
    assert runs[0].config.model_dump()["rollout"]["num_samples"] == 16


def test_models_with_which_steps_begin_are_each_evaluated_once() -> None:
    settings = {
        name: {"data": {"files": ["r"]}, "model": {"init": init}} for name, init in {"a": "x", "b": "x", "c": "y"}.items()
    }
    steps = {name: {"stage": "sft", "settings": given} for name, given in settings.items()}
    runs = planned(steps=steps, evaluation={"settings": {"tasks": {"domains": ["mock"]}}})
    assert [run.label for run in runs] == ["a", "base-eval", "a-eval", "b", "b-eval", "c", "base-c-eval", "c-eval"]
    assert [run.over for run in runs if run.kind == "evaluation"] == [None, "base", "base", None, "base-c"]


def test_what_is_not_evaluated_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="`b` cannot be compared"):
        planned(steps={"a": {"stage": "seed"}}, compare=["b"])


def test_a_link_that_does_not_hold_is_named() -> None:
    seed = {"parents": [], "begins_as": None, "inputs": [], "outputs": ["a"], "episodes": ["e"]}
    sft = {"parents": ["seed"], "begins_as": None, "inputs": ["b"], "outputs": ["c"], "episodes": []}
    assert chain({"seed": seed, "sft": {**sft, "inputs": ["a"]}}, [])["holds"]
    assert chain({"seed": seed, "sft": sft}, [])["broken"] == ["seed -> sft"]
    assert chain({"seed": seed, "rft-filter": {**sft, "inputs": ["e"]}}, [])["holds"]


@pytest.mark.parametrize(("played", "broken"), [("start", []), ("end", ["sft -> base-eval"])])
def test_base_is_what_the_step_was_trained_from(played: str, broken: list[str]) -> None:
    sft = {"parents": [], "begins_as": None, "inputs": ["rows", "start"], "outputs": ["end"], "episodes": []}
    base = {"model": "base", "parents": [], "begins_as": "sft", "inputs": [played]}
    assert chain({"sft": sft}, [base])["broken"] == broken


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished smoke run of the laptop chain, and the command that made it."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    words = ["run", "-c", str(LAPTOP), "--limit", "1", "--inline", "--output", str(folder), "--json"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((folder / "report.json").read_text("utf-8"))
    return folder, words


def test_the_whole_chain_holds(smoke: tuple[Path, list[str]]) -> None:
    report = json.loads((smoke[0] / "report.json").read_text("utf-8"))
    assert report["chain"] == {"links": 9, "broken": [], "holds": True}
    assert not report["incomplete"]
    assert [e["model"] for e in report["evaluations"]] == ["base", "sft", "rft", "grpo"]
    assert all(e["floor"] == 0.0 and e["tasks"] == 1 and e["attempts"] == 4 for e in report["evaluations"])
    assert report["steps"]["grpo"]["cpu_seconds"] > 0
    assert report["not_done"] == []


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run of the laptop recipe, on a teacher that solves half of its tasks."""
    folder = tmp_path_factory.mktemp("branches") / "run"
    noise = ("--set", "steps.seed.settings.noise_prob=0.5")
    result = runner.invoke(app, ["run", "-c", str(RECIPE), "--limit", "2", "--inline", *noise, "--output", str(folder)])
    assert result.exit_code == 0, result.stderr
    return folder


def test_branches_are_compared_in_pairs(branches: Path) -> None:
    report = json.loads((branches / "report.json").read_text("utf-8"))
    assert report["chain"] == {"links": 11, "broken": [], "holds": True}
    pairs = [(pair["first"], pair["second"]) for pair in report["comparisons"]]
    assert pairs == [("sft-all", "sft-subset"), ("sft-all", "sft-solved"), ("sft-subset", "sft-solved")]
    shares = {entry["model"]: entry["pass@1"]["value"] for entry in report["evaluations"]}
    for pair in report["comparisons"]:
        assert pair["pass@1"]["tasks"] == 2
        assert pair["pass@1"]["difference"]["value"] == pytest.approx(shares[pair["first"]] - shares[pair["second"]])
    text = shown(str(branches))
    assert "sft-subset - sft-solved" in text and "difference [95%]" in text
    assert next(line.split() for line in text.splitlines() if line.split()[:1] == ["model"])[-3:] == ["over", "cpu", "s"]


def test_each_branch_costs_what_it_needed(branches: Path) -> None:
    report = json.loads((branches / "report.json").read_text("utf-8"))
    steps = {name: step["cpu_seconds"] for name, step in report["steps"].items()}
    spent = {entry["model"]: entry["cpu_seconds_to_here"] for entry in report["evaluations"]}
    assert spent["base"] == 0
    assert spent["sft-all"] == pytest.approx(steps["seed"] + steps["sft-all"])
    assert spent["sft-solved"] == pytest.approx(steps["seed"] + steps["rows-solved"] + steps["sft-solved"])


def test_the_subset_has_as_many_rows_as_were_solved(branches: Path) -> None:
    def kept(run: str) -> tuple[int, set[float]]:
        report = json.loads((branches / "runs" / run / "report.json").read_text("utf-8"))
        rows = (branches / "runs" / run / "sft.jsonl").read_text("utf-8").splitlines()
        return report["kept"], {json.loads(row)["metadata"]["reward"] for row in rows}

    seed = json.loads((branches / "runs" / "01-seed" / "report.json").read_text("utf-8"))
    assert seed["kept"] == seed["tried"] == 32 and 0 < seed["solved"] < 32
    assert kept("03-rows-solved") == (seed["solved"], {1.0})
    assert kept("02-rows-subset")[0] == seed["solved"] and 0.0 in kept("02-rows-subset")[1]


def shown(*words: str, code: int = 0) -> str:
    result = runner.invoke(app, ["report", *words])
    assert result.exit_code == code, result.stderr
    return result.stdout


def test_the_report_of_a_pipeline_is_its_table_and_its_chain(smoke: tuple[Path, list[str]]) -> None:
    folder, _ = smoke
    text, stored = shown(str(folder)), json.loads((folder / "report.json").read_text("utf-8"))
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["model"] == ["model", "pass@1", "[95%]", "pass@4", "floor", "rise", "[95%]", "cpu", "s"]
    assert [rows[name][:1] for name in ("base", "all")] == [["base"], ["all"]]
    for name in ("seed", "rft-filter"):
        step = stored["steps"][name]
        assert rows[name][1:5] == [name, ", ".join(step["parents"]) or "-", step["digest"][:8], step["outputs"][0][:8]]
    assert "chain of hashes: 9 links, sound\n" in text
    assert json.loads(shown(str(folder), "--json")) == stored


def test_every_run_of_the_chain_says_what_it_cost(smoke: tuple[Path, list[str]]) -> None:
    folder, _ = smoke
    report = json.loads((folder / "report.json").read_text("utf-8"))
    runs = {run.name[3:]: json.loads((run / "report.json").read_text("utf-8"))["cost"] for run in (folder / "runs").iterdir()}
    plays = ["seed", "rft-filter", "grpo", "base-eval", "sft-eval", "rft-eval", "grpo-eval"]
    assert sorted(runs) == sorted([*plays, "sft", "rft"])
    for name, cost in runs.items():
        assert cost["process"]["wall_seconds"] > 0 and cost["process"]["reason"] is None, name
        assert ("episodes" in cost) == (name in plays), name
        assert cost["bottleneck"], name
    assert all(runs[name]["episodes"] > 0 and runs[name]["env_cpu"]["seconds"] > 0 for name in plays)
    assert set(runs["grpo"]["wall"]["seconds"]) == {"loading", "sampling", "playing", "update", "saving", "rest"}
    assert runs["grpo"]["tokens"]["policy_out"] > 0
    total = report["cost"]
    assert total["episodes"] == sum(runs[name]["episodes"] for name in plays)
    assert total["tokens"]["trained"] == sum(runs[name]["tokens"]["trained"] for name in ("sft", "rft", "grpo"))
    assert total["env_cpu"]["seconds"] == pytest.approx(sum(runs[name]["env_cpu"]["seconds"] for name in plays))
    assert total["not_counted"] == {"policy tokens": ["seed"], "environments": []}  # the gold teacher samples nothing
    text = shown(str(folder))
    assert f"\ncost: {duration(total['seconds'])}; the agent read " in text
    assert "\ncost of " not in text and "\ncost in detail: " not in text
    text = shown(str(folder), "--cost")
    assert all(f"\ncost of {name}: " in text for name in runs)
    assert f"\ncost in detail: {total['seconds']:.1f} s, {total['cpu_seconds']:.1f} s of CPU; " in text
    assert "\ncost: " in shown(str(folder / "runs" / "01-seed")) and "\ncost: " in shown(str(folder / "runs" / "02-sft"))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("01-seed", ["domain", "tried", "solved", "kept"]),
        ("02-sft", ["training"]),
        ("05-rft-filter", ["domain", "tried", "solved", "kept"]),
        ("08-grpo", ["training"]),
        ("09-grpo-eval", ["domain", "tasks", "pass@1", "[95%]"]),
    ],
)
def test_the_report_of_every_stage_can_be_printed(run: str, words: list[str], smoke: tuple[Path, list[str]]) -> None:
    folder = smoke[0] / "runs" / run
    head = next(line.split() for line in shown(str(folder)).splitlines() if line.strip())
    assert head[: len(words)] == words
    stored = json.loads((folder / "report.json").read_text("utf-8"))
    assert json.loads(shown(str(folder / "report.json"), "--json")) == stored


def test_a_pipeline_that_is_not_finished_names_what_is_left(smoke: tuple[Path, list[str]], tmp_path: Path) -> None:
    config = with_files(load_config(PipelineConfig, LAPTOP, (), {"limit": 1}), LAPTOP.parent)
    runs = plan_pipeline(config, smoke[0])
    (tmp_path / "report.json").write_text(
        json.dumps(build_pipeline_report([*runs[:2], *plan_pipeline(config, tmp_path)[2:]])), "utf-8"
    )
    text = shown(str(tmp_path), code=1)
    assert "not done: base-eval, sft-eval, rft-filter, rft, rft-eval, grpo, grpo-eval\n" in text
    assert "chain of hashes: 1 link, sound\n" in text


def test_started_again_it_makes_only_what_is_missing(smoke: tuple[Path, list[str]]) -> None:
    folder, words = smoke
    before = json.loads((folder / "report.json").read_text("utf-8"))
    starts = {run.name: len(list(run.glob("logs/session_*"))) for run in (folder / "runs").iterdir()}
    (folder / "runs" / "09-grpo-eval" / "report.json").unlink()
    shutil.rmtree(folder / "runs" / "08-grpo")
    again = runner.invoke(app, words)
    assert again.exit_code == 0, again.stderr
    assert "7 of 9 runs finished already" in again.stderr
    after = json.loads(again.stdout)
    assert after["steps"]["grpo"]["outputs"] == before["steps"]["grpo"]["outputs"]
    now = {run.name: len(list(run.glob("logs/session_*"))) for run in (folder / "runs").iterdir()}
    assert now == {**starts, "08-grpo": 1, "09-grpo-eval": 2}


@pytest.mark.parametrize(
    ("lost", "waits", "again"),
    [
        ("01-seed/rows.jsonl", "02-sft", "123456789"),
        ("05-rft-filter/sft.jsonl", "06-rft", "56789"),
        ("02-sft/checkpoints/final/model.safetensors", "04-sft-eval", "23456789"),
        ("08-grpo/checkpoints/final/config.json", "09-grpo-eval", "89"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_what_a_finished_step_has_lost_is_named_before_anything_runs(
    lost: str, waits: str, again: str, more: tuple[str, ...], smoke: tuple[Path, list[str]], tmp_path: Path
) -> None:
    words = list(smoke[1])
    folder = Path(words[words.index("--output") + 1])
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept, symlinks=True)
    try:
        (folder / "runs" / lost).unlink()
        (folder / "runs" / waits / "report.json").unlink()
        result = runner.invoke(app, [*words, *more])
        assert result.exit_code == 2 and result.stderr.count("is gone: step") == 1, result.stderr
        assert f"`{folder / 'runs' / lost}` is gone" in result.stderr and f"`{waits[3:]}` needs it" in result.stderr
        hint = next(line for line in result.stderr.splitlines() if "rm -r " in line)
        assert "".join(Path(word).name[1] for word in shlex.split(hint.partition("rm -r ")[2])) == again
    finally:
        shutil.rmtree(folder)
        shutil.move(kept, folder)


def test_a_lost_shard_is_named_and_what_does_not_stand_on_it_stays(tmp_path: Path) -> None:
    source, rows = tmp_path / "Q", tmp_path / "rows.jsonl"
    steps = {
        "sft": {"stage": "sft", "settings": {"model": {"init": str(source)}, "data": {"files": [str(rows)]}}},
        "grpo": {"stage": "grpo", "model": "sft", "settings": {"tasks": {"domains": ["mock"], "split": "synth-train"}}},
    }
    asked = {
        "name": "p",
        "steps": steps,
        "evaluation": {"settings": {"tasks": {"domains": ["mock"]}, "policy": {"kind": "local"}}},
    }
    plan = {planned.label: planned for planned in plan_pipeline(build(PipelineConfig, asked), tmp_path / "p")}
    assert plan["base-eval"].begins_as == "sft"
    for name in ("sft", "base-eval"):
        plan[name].folder.mkdir(parents=True)
        (plan[name].folder / "report.json").write_text(json.dumps({"schema": 2, "stage": "sft", "incomplete": False}))
    final = plan["sft"].folder / "checkpoints" / "final"
    final.mkdir(parents=True)
    weights = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in ("config.json", *weights):
        (final / name).write_text("{}")
    (final / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", weights, strict=True))}))
    refuse_lost(list(plan.values()))
    (final / weights[1]).unlink()
    with pytest.raises(UserError) as caught:
        refuse_lost(list(plan.values()))
    assert weights[1] in caught.value.message and "base-eval" not in caught.value.hint


def test_with_other_settings_it_is_refused(smoke: tuple[Path, list[str]]) -> None:
    result = runner.invoke(app, [*smoke[1], "--set", "steps.sft.settings.train.lr=0.5"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "steps.sft.settings.train.lr: was 0.003, now 0.5" in result.stderr


def test_a_run_that_breaks_ends_the_chain_with_its_code(tmp_path: Path) -> None:
    steps = {"a": {"stage": "seed", "settings": {"tasks": {"domains": ["mock"], "split": "synth-test", "limit": 1}}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"stage": "pipeline", "steps": steps}), "utf-8")
    result = runner.invoke(app, ["run", "-c", str(tmp_path / "p.yaml"), "--output", str(tmp_path / "run"), "--inline"])
    assert result.exit_code == 2
    assert "kept for tests" in result.stderr


def test_a_dry_run_shows_every_run_and_makes_none(tmp_path: Path) -> None:
    words = ["run", "-c", str(LAPTOP), "--dry-run", "--json", "--output", str(tmp_path / "run")]
    shown = json.loads(runner.invoke(app, words).stdout)
    assert [run["config"]["stage"] for run in shown["runs"]][:2] == ["seed", "sft"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "file", sorted(path for path in Path("configs").rglob("*.yaml") if "stage: pipeline" in path.read_text("utf-8"))
)
def test_a_checkpoint_is_evaluated_with_its_own_tokenizer(file: Path, tmp_path: Path) -> None:
    config = load_config(PipelineConfig, file)
    for planned in plan_pipeline(with_files(config, file.parent), tmp_path):
        if isinstance(planned.config, EvalConfig) and planned.config.policy.kind == "local":
            assert planned.config.chat.tokenizer in (None, str(planned.config.policy.checkpoint)), planned.label
