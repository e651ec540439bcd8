"""Where a model is trained, as a Protocol: in this process (`train/`) or on a cluster (`slime/`).

A recipe chooses a backend once (`recipes/`), and nothing above or below asks again which one it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tau2rl.config import GrpoConfig, SftConfig, UserConfig
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress

TrainingConfig = SftConfig | GrpoConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """What speaks against a start: `Issue(kind="error", message="8 GPUs are asked for, 4 are there", hint="...")`."""

    kind: Literal["error", "warning"]
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a training would do, known before it does anything: `--dry-run` prints it, an error in it refuses the start."""

    argv: tuple[str, ...] = ()  # the command that trains; () where this process does
    layout: tuple[str, ...] = ()  # which device does what, a line each
    issues: tuple[Issue, ...] = ()
    recorded: dict[str, Any] = field(default_factory=dict[str, Any])  # beside the run's identity in `environment.json`
    user: UserConfig | None = None  # the user simulator, where the backend serves it; None: that of the settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training left: `Trained(checkpoint=Path(".../checkpoints/final"), training={"steps": 40, ...}, ...)`."""

    checkpoint: Path | None  # the model that came out; None where it ended before the first one
    training: dict[str, Any]  # the whole run in a few numbers, for the report
    cost: dict[str, Any] | None
    rows: dict[str, Any] | None = None  # `sft`: where every row went
    interrupted: str = ""  # why it ended before its last step, in words for people; "" where it did not


class Backend(Protocol):
    """Trains a model. `sft` and `grpo` run on any backend with the same settings and leave the same report.

    One of the user's is named by `backend: "my_pkg.mod:MyBackend"`, and made without arguments.
    """

    def plan(self, config: TrainingConfig, *, probe: bool) -> Plan:
        """Check a request and say what it would run.

        With `probe` this machine is asked too (GPUs, memory, servers); without, only the settings speak. Raises UserError.
        """
        ...

    def start(self, config: TrainingConfig, folder: RunFolder) -> Path:
        """The checkpoint that training starts from, a Hugging Face directory; a tiny one is made on the first start."""
        ...

    def train(self, config: TrainingConfig, folder: RunFolder, progress: Progress) -> Trained:
        """Train, or go on from the last saved state. Raises UserError before anything starts."""
        ...

    def checkpoint(self, run: Path, step: int) -> Path | None:
        """Where a run keeps the model behind a step; None where it was not kept."""
        ...
