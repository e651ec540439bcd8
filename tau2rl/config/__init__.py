"""The settings of every stage, defined once: a field of a section is a key of files, a name of `--set` and an option.

To add a setting, add a field with its docstring to its section (`sections.py`, `training.py`, `slime.py`): no other list has it.
`stages.py` says which sections a stage has, `effects.py` which settings do nothing under which others, `renamed.py` what they
were called before. Unknown keys are errors with the nearest name as a hint.
"""

from __future__ import annotations

from tau2rl.config.base import DOMAINS, Section
from tau2rl.config.fields import Setting, every_setting, known_names, words_of
from tau2rl.config.loading import build, dump, flatten, load, put, read_file, type_of
from tau2rl.config.sections import (
    PRESETS,
    ChatConfig,
    DataConfig,
    KeepConfig,
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
    AgentConfig,
    EvalConfig,
    EvaluationConfig,
    GrpoConfig,
    LearnConfig,
    PipelineConfig,
    PlayConfig,
    RftConfig,
    SeedConfig,
    SftConfig,
    StageConfig,
    StepConfig,
)
from tau2rl.config.training import (
    AlgoConfig,
    CurriculumConfig,
    GrpoTrainConfig,
    LocalTrainConfig,
    ModelConfig,
    SftTrainConfig,
    ShapeConfig,
    TrackingConfig,
    TrainConfig,
    ValConfig,
)

__all__ = [
    "DOMAINS",
    "PRESETS",
    "STAGES",
    "AgentConfig",
    "AlgoConfig",
    "ChatConfig",
    "CurriculumConfig",
    "DataConfig",
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
    "Setting",
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
    "ValConfig",
    "build",
    "dump",
    "every_setting",
    "flatten",
    "known_names",
    "load",
    "put",
    "read_file",
    "type_of",
    "words_of",
]
