"""What may change when a run is resumed; pinned here:

- every setting of every stage is either part of what a run is, or free, with its reason; none is forgotten, and none is listed
  that does not exist;
- with every setting of the list changed, a run is continued, and `environment.json` says what changed, from what, to what, when;
- with any other changed it is refused with both values, and nothing is written;
- a training can be extended and not shortened; validations may come at other steps unless stopping early counts them;
- a pipeline's steps follow the rules of their own settings;
- a free setting is in no digest.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tau2rl.config import STAGES, GrpoConfig, PipelineConfig, SftConfig, StageConfig, build, put
from tau2rl.errors import UserError
from tau2rl.runs import changes, provenance
from tau2rl.runs.changes import CONDITIONS, FREE, IDENTITY, STARTED, allowed_changes, is_identity
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder, read_config

GRPO: dict[str, Any] = {"model": {"init": "a/checkpoint"}, "tasks": {"domains": ["mock"], "split": "synth-train"}}
SERVED = {"gpus": 1, "checkpoint": "/models/user"}
AGENTS: list[dict[str, Any]] = [
    {"policy": {"kind": "sglang"}, "chat": {"protocol": "native", "tokenizer": "bytes"}, "user": {"kind": "llm"}},
    {"policy": {"kind": "api", "model": "m"}, "chat": {"protocol": "transcript"}, "rollout": {"workers": 2}},
    {"policy": {"kind": "local", "checkpoint": "c"}, "chat": {"protocol": "native"}},
]
TRAININGS: list[dict[str, Any]] = [{}, {"backend": "slime", "slime": {"user": SERVED}}, {"tracking": {"wandb": "offline"}}]
BASES: dict[str, list[dict[str, Any]]] = {
    "eval": AGENTS,
    "seed": AGENTS,
    "rft-filter": AGENTS,
    "sft": TRAININGS,
    "grpo": [{**GRPO, **values} for values in TRAININGS],
    "pipeline": [{}],
}


def leaves(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting below a config class."""
    found: dict[str, Any] = {}
    for key, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= leaves(info.annotation, f"{prefix}{key}.")
        else:
            found[prefix + key] = info.annotation
    return found


EVERY = {name: kind for stage in STAGES.values() for name, kind in leaves(stage).items()}
LISTED = {**STARTED, **FREE, **IDENTITY}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_no_setting_is_forgotten(name: str) -> None:
    assert changes._rule(name) is not None, f"say in runs/changes.py whether `{name}` may change when a run is resumed, and why"


def test_no_setting_is_listed_that_does_not_exist_or_twice() -> None:
    exist = [*EVERY, *(name.rpartition(".")[0] for name in EVERY)]
    sections = {name[:end] for name in EVERY for end, c in enumerate(name) if c == "."}
    assert {name for name in LISTED if name not in exist and name not in sections} == set()
    assert len(LISTED) == len(STARTED) + len(FREE) + len(IDENTITY)
    assert set(CONDITIONS) <= set(EVERY) and all(is_identity(name) for name in CONDITIONS)
    assert all(reason.strip() for reason in LISTED.values())


def other(value: Any, kind: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 or 0.25
        case str() if typing.get_origin(kind) is typing.Literal:
            return next(word for word in typing.get_args(kind) if word != value)
        case str():
            return f"{value}x"
        case _:
            return "X_KEY" if value is None else [1]


def changed(config: StageConfig, name: str) -> StageConfig | None:
    """The config with another value of a setting; None where no other value fits the rest."""
    values = config.model_dump(mode="json")
    value: Any = values
    for part in name.split("."):
        value = value[part]
    for candidate in (other(value, EVERY[name]), True, 7, 0.5, "http://127.0.0.1:9", "/tmp/x"):
        put(values, name, candidate)
        try:
            made = build(type(config), values, stored=True)
        except UserError:
            continue
        if made != config:
            return made
    return None


@pytest.mark.parametrize("name", sorted(FREE))
def test_a_free_setting_may_change_and_is_recorded(name: str, tmp_path: Path) -> None:
    tried = 0
    for stage, bases in BASES.items():
        for leaf in (each for each in leaves(STAGES[stage]) if each == name or each.startswith(f"{name}.")):
            for base in (build(STAGES[stage], values, stored=True) for values in bases):
                now = changed(base, leaf)
                if now is not None:
                    tried += 1
                    assert [change.setting for change in allowed_changes(base, now, tmp_path)] == [leaf]
                    assert provenance.settings_of(base) == provenance.settings_of(now)
    assert tried, f"no stage could change `{name}`"


def run_of(path: Path, config: StageConfig) -> Path:
    RunFolder.create(path, config, resume=False)
    with RunFolder.open(path) as folder:
        folder.write_environment(provenance.environment(config, {}, {"parent": "p"}))
        folder.metrics.write_text('{"step": 1}\n', "utf-8")
    return path


def sft(**train: Any) -> SftConfig:
    return build(SftConfig, {"train": {"steps": 40, **train}})


def test_the_way_out_of_an_out_of_memory_kill_is_open_and_recorded(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", sft())
    smaller = sft().model_copy(update={"local": sft().local.model_copy(update={"max_tokens_per_microbatch": 512})})
    RunFolder.create(run, smaller, resume=True)
    with RunFolder.open(run) as folder:
        folder.write_environment(provenance.environment(smaller, {}, {"parent": "p"}))
    (change,) = read_json(run / "environment.json")["changes"]
    assert change | {"time": ""} == {"time": "", "setting": "local.max_tokens_per_microbatch", "from": 4096, "to": 512}
    assert change["time"].endswith("+00:00")
    RunFolder.create(run, sft(), resume=True)
    assert [each["to"] for each in read_json(run / "environment.json")["changes"]] == [512, 4096]


def test_a_training_is_extended_and_not_shortened(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", sft())
    RunFolder.create(run, sft(steps=80), resume=True)
    with pytest.raises(UserError, match=r"train\.steps: was 80, now 40 \(a training can be extended, not shortened\)"):
        RunFolder.create(run, sft(), resume=True)
    assert read_config(run) == sft(steps=80)


@pytest.mark.parametrize(("patience", "words"), [(0, None), (2, "counts validations")])
def test_validations_may_move_unless_stopping_early_counts_them(patience: int, words: str | None, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", sft(early_stopping_patience=patience))
    moved = sft(early_stopping_patience=patience, val_every=10)
    if words is None:
        RunFolder.create(run, moved, resume=True)
    else:
        with pytest.raises(UserError, match=words):
            RunFolder.create(run, moved, resume=True)


def test_memory_and_placement_of_a_cluster_may_change_and_its_user_simulator_may_not(tmp_path: Path) -> None:
    served = SERVED
    base = {**GRPO, "backend": "slime", "user": {"kind": "llm"}, "slime": {"user": served}}
    run = run_of(tmp_path / "run", build(GrpoConfig, base))
    placed = {"layout": "colocate", "mem_fraction": 0.5, "tensor_parallel": 4, "max_tokens_per_gpu": 4096, "saves": "last"}
    RunFolder.create(run, build(GrpoConfig, {**base, "slime": {**placed, "user": {**served, "gpus": 2}}}), resume=True)
    told = {change["setting"] for change in read_json(run / "environment.json")["changes"]}
    assert told == {*(f"slime.{name}" for name in placed), "slime.user.gpus"}
    for refused, setting in (
        ({**placed, "user": {"gpus": 0}}, "slime.user.gpus"),
        ({**placed, "user": served, "extra": {"optimizer-cpu-offload": True}}, "slime.extra"),
        ({"overlap": True, "user": served}, "slime.overlap"),
    ):
        with pytest.raises(UserError, match=setting):
            RunFolder.create(run, build(GrpoConfig, {**base, "slime": refused}), resume=True)


def test_the_steps_of_a_pipeline_follow_the_rules_of_their_own_settings(tmp_path: Path) -> None:
    def pipeline(**settings: Any) -> PipelineConfig:
        return build(PipelineConfig, {"steps": {"a": {"stage": "sft", "settings": settings}}})

    run = run_of(tmp_path / "run", pipeline(train={"steps": 4}))
    RunFolder.create(run, pipeline(train={"steps": 8}, local={"threads": 2}), resume=True)
    for refused in ({"train": {"steps": 2}}, {"train": {"steps": 8, "lr": 0.5}}):
        with pytest.raises(UserError, match=r"steps\.a\.settings\.train"):
            RunFolder.create(run, pipeline(**refused), resume=True)
