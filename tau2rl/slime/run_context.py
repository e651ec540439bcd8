"""What crosses over into slime's job: where a run keeps its files, what is written before the start, the way back from `args`.

Settings reach our hooks by `--custom-config-path` alone: one YAML file, one key `tau2rl` in it, which slime puts on `args`.
Nothing secret is in it: the dashboard and the trackers show `args` to anyone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from tau2rl import plugins
from tau2rl.backend import TrainingConfig
from tau2rl.config import AlgoConfig, GrpoConfig, SftConfig, UserConfig, build, dump
from tau2rl.slime.layout import layout_of, sglang_config
from tau2rl.slime.model import ModelShape

KEY = "tau2rl"  # of `args`, and of the YAML file
MISMATCH = "examples.train_infer_mismatch_helper.mis.compute_mis_weights_with_cp"
MODES = {"tis": "truncate", "mis": "mask", "clip": "clip"}  # its words
NO_LIMIT = 1e30  # a weight is at most e^20


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimeRun:
    """Where a run keeps what: `SlimeRun(folder=Path("/data/outputs/grpo/first"), shape=read_shape(checkpoint))`."""

    folder: Path  # absolute: slime's actors have working directories of their own
    shape: ModelShape | None  # None: the checkpoint is not at hand, and the options that build the model are left out

    @property
    def own(self) -> Path:
        """What is written for slime."""
        return self.folder / "slime"

    @property
    def prompts(self) -> Path:
        """The tasks, or for `sft` the conversations, that are trained on."""
        return self.own / "prompts.jsonl"

    @property
    def eval_prompts(self) -> Path:
        """The tasks of validation."""
        return self.own / "eval_prompts.jsonl"

    @property
    def custom_config(self) -> Path:
        """What `--custom-config-path` names."""
        return self.own / "custom_config.yaml"

    @property
    def sglang_config(self) -> Path:
        """What `--sglang-config` names."""
        return self.own / "sglang_config.yaml"

    @property
    def dumps(self) -> Path:
        """slime's dumps of every rollout."""
        return self.own / "dumps"

    @property
    def save(self) -> Path:
        """Megatron's checkpoints, from which an interrupted run goes on."""
        return self.folder / "checkpoints" / "megatron"

    @property
    def save_hf(self) -> Path:
        """Hugging Face directories beside them; slime fills in the number of the rollout."""
        return self.folder / "checkpoints" / "hf" / "{rollout_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a hook has: the settings of the run and its folder."""

    config: TrainingConfig
    folder: Path

    @property
    def grpo(self) -> GrpoConfig:
        """The settings, where the hook is one of rollouts."""
        assert isinstance(self.config, GrpoConfig)
        return self.config


def run_context(args: Any) -> RunContext:
    """The run behind slime's `args`; the settings are read once a process and folder, so that every hook may ask."""
    handed = cast("Mapping[str, Any]", getattr(args, KEY))
    if handed["folder"] not in _known:
        _known[handed["folder"]] = _read(handed)
    return _known[handed["folder"]]


_known: dict[str, RunContext] = {}  # by the folder of the run


def _read(handed: Mapping[str, Any]) -> RunContext:
    kind: type[SftConfig] | type[GrpoConfig] = {"sft": SftConfig, "grpo": GrpoConfig}[handed["stage"]]
    config = build(kind, handed["config"], stored=True)
    plugins.search(handed.get("path", ()))
    return RunContext(config=config, folder=Path(handed["folder"]))


def custom_config(config: TrainingConfig, run: SlimeRun) -> dict[str, Any]:
    """The content of `--custom-config-path`; the keys beside `tau2rl` are those that slime's own code looks for on `args`."""
    handed: dict[str, Any] = {"folder": str(run.folder), "stage": config.stage, "config": dump(config)}
    if plugins.references(handed["config"]):
        handed["path"] = list(sys.path)  # where this process found them; slime's own look elsewhere
    beside = _mismatch_settings(config.algo) if isinstance(config, GrpoConfig) else {}
    return {KEY: handed, **beside}


def needs_mismatch_helper(algo: AlgoConfig) -> bool:
    """Whether a correction looks at more than one token, which slime's loss does not do by itself."""
    return algo.correction != "none" and (algo.correction_level != "token" or algo.veto is not None)


def _mismatch_settings(algo: AlgoConfig) -> dict[str, Any]:
    """What slime's helper for corrections of more than one token reads from `args`; empty where it is not used."""
    if not needs_mismatch_helper(algo):
        return {}
    return {
        "tis_mode": MODES[algo.correction],
        "tis_level": algo.correction_level,
        "tis_lower_bound": algo.correction_low,
        "tis_upper_bound": algo.correction_high,
        "tis_batch_normalize": False,
        # The veto is part of the helper's rejection, whose own bounds are put out of reach.
        "use_rs": algo.veto is not None,
        "rs_level": "token",
        "rs_lower_bound": 0.0,
        "rs_upper_bound": NO_LIMIT,
        "rs_veto_threshold": algo.veto,
    }


def write_files(config: TrainingConfig, run: SlimeRun) -> None:
    """Write the two YAML files; prompts are written by whoever has the tasks."""
    run.own.mkdir(parents=True, exist_ok=True)
    _write_yaml(run.custom_config, custom_config(config, run))
    engines = sglang_config(config.slime, layout_of(config))
    if engines is not None:
        _write_yaml(run.sglang_config, engines)


def served_user(config: GrpoConfig, url: str) -> UserConfig | None:
    """The user simulator that the job serves at `url` (up to `/v1`); None where it is somewhere else, as `user` says."""
    if not config.slime.user.gpus:
        return None
    return config.user.model_copy(update={"model": f"openai/{config.slime.user.name}", "api_base": url})


def absolute(config: TrainingConfig) -> TrainingConfig:
    """The config with paths that hold in any working directory. A tokenizer's name that is no directory stays a name."""
    values = dump(config)
    values["model"]["init"] = _absolute(values["model"]["init"])
    if values["slime"]["user"]["checkpoint"]:
        values["slime"]["user"]["checkpoint"] = _absolute(values["slime"]["user"]["checkpoint"])
    for section, key in (("reward", "recipe"), ("tasks", "source"), ("val", "source")):
        if values.get(section, {}).get(key):
            values[section][key] = _absolute(values[section][key])
    curriculum = values.get("algo", {}).get("curriculum", {})
    if curriculum.get("profile"):
        curriculum["profile"] = _absolute(curriculum["profile"])
    chat = values.get("chat")
    if chat:
        for key in ("tokenizer", "cookbook_prompt"):
            if chat.get(key) and Path(chat[key]).expanduser().exists():
                chat[key] = _absolute(chat[key])
    return build(type(config), values, stored=True)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
    draft.replace(path)
