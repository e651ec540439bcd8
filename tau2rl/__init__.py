"""Post-train small open models into multi-turn tool-use agents on tau2-bench.

    import tau2rl

    report = tau2rl.evaluate_sync(policy="gold", domains=["mock"], split="base", num_samples=1, user="scripted")
    episode = await tau2rl.rollout(task, env=tau2rl.make_env(task, user="scripted"), policy=policy, codec=codec)

What `__all__` names is public: it changes only with a new minor version (a new major one from 1.0 on), and what goes is first
kept for one release with a warning. Everything else in the package is internal and changes without notice. Settings, records
and reports have their own rule: old names of settings are read for one release, old run folders stay readable.

Nothing is loaded until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tau2rl.api import EvalReport, evaluate, evaluate_sync, make_codec, make_env, rollout, tasks
    from tau2rl.backend import Backend, Issue, Plan, Trained, TrainingConfig
    from tau2rl.chat.tokenizers import Tokenizer
    from tau2rl.chat.transcript import read as read_transcript
    from tau2rl.config import LimitsConfig
    from tau2rl.enums import Fault, FinishReason, MalformedKind, Status, StopReason
    from tau2rl.errors import EnvironmentFailure, MalformedTurn, PolicyFailure, UserError, UserSimulatorFailure
    from tau2rl.policy.scripted import ScriptedPolicy
    from tau2rl.protocols import ChatCodec, Env, Policy, RewardFn, Sink, Verifier
    from tau2rl.runs.folder import RunFolder
    from tau2rl.runs.progress import Progress, ProgressEvent
    from tau2rl.types import (
        Action,
        Actions,
        Attempt,
        CallTool,
        Checks,
        Completion,
        EnvTime,
        Episode,
        EpisodeRecord,
        Failure,
        Grade,
        Message,
        Opening,
        Reply,
        Say,
        Score,
        TaskRef,
        Think,
        ToolSchema,
        Transcript,
        Turn,
        Usage,
    )

__version__ = "0.1.0"

_MODULES = {
    "api": ("EvalReport", "evaluate", "evaluate_sync", "make_codec", "make_env", "rollout", "tasks"),
    "backend": ("Backend", "Issue", "Plan", "Trained", "TrainingConfig"),
    "chat.tokenizers": ("Tokenizer",),
    "chat.transcript": ("read_transcript",),
    "enums": ("Fault", "FinishReason", "MalformedKind", "Status", "StopReason"),
    "errors": ("EnvironmentFailure", "MalformedTurn", "PolicyFailure", "UserError", "UserSimulatorFailure"),
    "policy.scripted": ("ScriptedPolicy",),
    "config": ("LimitsConfig",),
    "runs.folder": ("RunFolder",),
    "runs.progress": ("Progress", "ProgressEvent"),
    "protocols": ("ChatCodec", "Env", "Policy", "RewardFn", "Sink", "Verifier"),
    "types": (
        "Action", "Actions", "Attempt", "CallTool", "Checks", "Completion", "EnvTime", "Episode", "EpisodeRecord", "Failure",
        "Grade", "Message", "Opening", "Reply", "Say", "Score", "TaskRef", "Think", "ToolSchema", "Transcript", "Turn", "Usage",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Action", "Actions", "Attempt", "Backend", "CallTool", "ChatCodec", "Checks", "Completion", "Env", "EnvTime",
    "EnvironmentFailure", "Episode", "EpisodeRecord", "EvalReport", "Failure", "Fault", "FinishReason", "Grade", "Issue",
    "LimitsConfig", "MalformedKind", "MalformedTurn", "Message", "Opening", "Plan", "Policy", "PolicyFailure", "Progress",
    "ProgressEvent", "Reply", "RewardFn", "RunFolder", "Say", "Score", "ScriptedPolicy", "Sink", "Status", "StopReason",
    "TaskRef", "Think", "Tokenizer", "ToolSchema", "Trained", "TrainingConfig", "Transcript", "Turn", "Usage", "UserError",
    "UserSimulatorFailure", "Verifier", "__version__", "evaluate", "evaluate_sync", "make_codec", "make_env", "read_transcript",
    "rollout", "tasks",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `tau2rl` has no attribute `{name}`")
    found = getattr(importlib.import_module(f"tau2rl.{_HOME[name]}"), {"read_transcript": "read"}.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
