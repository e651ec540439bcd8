"""Every knob: frozen, unknown keys are errors with the nearest name as a hint, YAML files + `--set a.b=c`.

A field's description is its documentation: `tau2rl config show` and `--help` read it from here. No knob of its own lives in
this file; `stages.py` says which sections a stage has.
"""

from __future__ import annotations

from tau2rl.config.algo import AlgoConfig, CurriculumConfig, SelectConfig
from tau2rl.config.base import DOMAINS, DomainName, Section
from tau2rl.config.data import DataConfig, KeepConfig
from tau2rl.config.explaining import known_names
from tau2rl.config.loading import build, dump, flatten, identity, load, parse_value, put, read_file
from tau2rl.config.playing import NOT_IDENTITY, AgentConfig, LearnConfig, PlayConfig, StageConfig
from tau2rl.config.sections import (
    PRESETS,
    ChatConfig,
    LaunchConfig,
    LimitsConfig,
    LocalConfig,
    PolicyConfig,
    PolicyKind,
    RewardConfig,
    RolloutConfig,
    SamplingConfig,
    TasksConfig,
    UserConfig,
)
from tau2rl.config.slime import SlimeConfig, SlimeUserConfig
from tau2rl.config.stages import (
    STAGES,
    EvalConfig,
    EvaluationConfig,
    GrpoConfig,
    PipelineConfig,
    RftConfig,
    SeedConfig,
    SftConfig,
    StepConfig,
)
from tau2rl.config.training import (
    GrpoTrainConfig,
    LocalTrainConfig,
    ModelConfig,
    SftTrainConfig,
    ShapeConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "DOMAINS",
    "NOT_IDENTITY",
    "PRESETS",
    "STAGES",
    "AgentConfig",
    "AlgoConfig",
    "ChatConfig",
    "CurriculumConfig",
    "DataConfig",
    "DomainName",
    "EvalConfig",
    "EvaluationConfig",
    "GrpoConfig",
    "GrpoTrainConfig",
    "KeepConfig",
    "LaunchConfig",
    "LearnConfig",
    "LimitsConfig",
    "LocalConfig",
    "LocalTrainConfig",
    "ModelConfig",
    "PipelineConfig",
    "PlayConfig",
    "PolicyConfig",
    "PolicyKind",
    "RewardConfig",
    "RftConfig",
    "RolloutConfig",
    "SamplingConfig",
    "Section",
    "SeedConfig",
    "SelectConfig",
    "SftConfig",
    "SftTrainConfig",
    "ShapeConfig",
    "SlimeConfig",
    "SlimeUserConfig",
    "StageConfig",
    "StepConfig",
    "TasksConfig",
    "TrackingConfig",
    "TrainConfig",
    "UserConfig",
    "build",
    "dump",
    "flatten",
    "identity",
    "known_names",
    "load",
    "parse_value",
    "put",
    "read_file",
]
