"""The settings of `tau2rl synth`: how many tasks are made, where on the grid, and who puts them into words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tau2rl.config.base import Section, Url, VariableName


class WriterConfig(Section):
    """Who puts made tasks into words."""

    kind: Literal["templates", "llm"] = "templates"
    """`templates`: no model is asked. `llm`: a model says the templates' lines anew; each text is read back and thrown away where
    a fact was lost, added or told too early."""
    model: str = "gpt-4.1-mini"
    """litellm model name; `openai/NAME` with `api_base` for a local SGLang or vLLM server."""
    api_base: Url | None = None
    """Base URL of an OpenAI-compatible server; default: the provider's own."""
    api_key_env: VariableName | None = None
    """Name of the environment variable that holds the key; default: what litellm looks for."""
    temperature: float = Field(default=0.7, ge=0)
    """0 = greedy."""
    attempts: int = Field(default=3, ge=1)
    """Tries of a text; each is told what was wrong with the one before."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Deadline of one call."""
    retries: int = Field(default=2, ge=0)
    """Calls tried again after an error."""
    concurrency: int = Field(default=8, ge=1)
    """Texts that are written at once; what comes of them does not depend on it."""
    cache: Path | None = None
    """Folder of the answers, by a hash of the question; default: `outputs/synth/writer-cache`."""


class SynthConfig(Section):
    """`tau2rl synth`: how many tasks are made, and where on the grid: writes x reads, telecom: problems x intents x personas."""

    domain: Literal["airline", "retail", "telecom"] = "retail"
    """The domain whose tasks are made."""
    output: Path | None = None
    """Folder of the tasks, new or empty; default: `outputs/synth/DOMAIN-SEED`."""
    resume: bool = False
    """Go on with what an interrupted run of the same command has left in the folder."""
    num_tasks: int = Field(default=100, ge=1)
    """So many tasks; fewer where the database has no more of these cells."""
    seed: int = 0
    """Everything is drawn from it: the same command makes the same bytes."""
    writes: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(default=(1, 2, 3, 4, 5), min_length=1)
    """Numbers of writes; each in equal parts with each of `burdens`."""
    burdens: tuple[Literal["0-2", "3-5", "6-9", "10+"], ...] = Field(default=("0-2", "3-5", "6-9", "10+"), min_length=1)
    """Numbers of reads after which the writes' arguments are known."""
    problems: tuple[Annotated[int, Field(ge=1, le=9)], ...] = Field(default=(1, 2, 3, 4, 5, 6), min_length=1)
    """Telecom: numbers of things that are wrong at once; each in equal parts with each of `intents` and `personas`."""
    intents: tuple[Literal["service", "mobile_data", "mms"], ...] = Field(default=("service", "mobile_data", "mms"), min_length=1)
    """Telecom: what does not work."""
    personas: tuple[Literal["none", "easy", "hard"], ...] = Field(default=("none", "easy", "hard"), min_length=1)
    """Telecom: how well the user knows their phone."""
    refusals: float = Field(default=0.1, ge=0, le=0.15)
    """Share of the tasks in which the agent must refuse (telecom: hand over to a human), and answer a question."""
    per_user: int = Field(default=12, ge=1)
    """At most so many tasks about one user of the database."""
    behaviours: int = Field(default=1, ge=1, le=8)
    """Ways in which each task is told, by users of different pace, style or twist; each way is a task of its own in the file."""
    twists: tuple[Literal["none", "corrected", "changes_mind", "does_not_know"], ...] = Field(
        default=("none", "corrected", "changes_mind", "does_not_know"), min_length=1
    )
    """What users may do beside telling what they want: put a wrong fact right, take a wish back, not know a number."""
    from_failures: tuple[Path, ...] = ()
    """Run folders, on training tasks: the tasks are made for what the agent failed at there, each kind in its share of the
    failures. `writes` and `burdens`, or `problems`, `intents` and `personas`, then say which of the failures' cells are used."""
    writer: WriterConfig = WriterConfig()

    @model_validator(mode="after")
    def _once(self) -> SynthConfig:
        for name in ("writes", "burdens", "problems", "intents", "personas", "twists"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        return self
