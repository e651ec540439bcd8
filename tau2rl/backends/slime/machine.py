"""What this machine has that a training needs: facts, gathered once, judged by `preflight`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tau2rl import settings
from tau2rl.backends.slime.handover import SlimeRun
from tau2rl.backends.slime.model_shape import ModelShape
from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.store.provenance import library_versions

ASK_SECONDS = 20.0
CONNECT_SECONDS = 5.0
ENGINE_PORT = 15000  # where slime begins to look for free ports for its engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device: `Gpu(total=85_899_345_920, used=0)`, in bytes."""

    total: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts about the machine that trains; None where a fact could not be had."""

    shape: ModelShape | None  # of the model; None where the checkpoint is not at hand
    gpus: tuple[Gpu, ...]  # of this machine
    cluster_gpus: int | None  # of the whole Ray cluster
    cores: int  # of the whole Ray cluster, of this machine where there is none yet
    missing: frozenset[Path]  # of the files and directories that the config names
    slime_commit: str | None
    numpy: str | None  # version
    sglang: bool  # whether it can be imported
    tokenizer: bool  # whether the checkpoint has one
    free_bytes: int
    rows: int | None  # conversations or tasks to train on
    eval_rows: int | None
    wandb_key: bool
    user_reachable: bool | None  # None: the customer has no server of one's own outside the job
    engine_port_taken: bool
    user_model: Mapping[str, Any] = field(default_factory=dict[str, Any])  # `config.json` of the customer that the job serves


def collect(
    config: SftConfig | GrpoConfig, run: SlimeRun, *, cluster_gpus: int | None = None, cluster_cores: int | None = None
) -> Machine:
    """Look at this machine. Takes seconds, changes nothing."""
    start = Path(config.model.init).expanduser()
    return Machine(
        shape=run.shape,
        gpus=_gpus(),
        cluster_gpus=cluster_gpus,
        cores=settings.available_cores() if cluster_cores is None else cluster_cores,
        missing=frozenset(path for path in _named(config) if not path.expanduser().exists()),
        slime_commit=_commit(config.slime.root),
        numpy=library_versions(("numpy",)).get("numpy"),
        sglang=importlib.util.find_spec("sglang") is not None,
        tokenizer=any(start.glob("tokenizer*")),
        free_bytes=shutil.disk_usage(_existing(run.folder)).free,
        rows=_lines(run.prompts),
        eval_rows=_lines(run.eval_prompts),
        wandb_key=settings.present_keys()["WANDB_API_KEY"] or Path("~/.netrc").expanduser().exists(),
        user_reachable=_user_reachable(config),
        engine_port_taken=not _free(ENGINE_PORT),
        user_model=_user_model(config),
    )


def _named(config: SftConfig | GrpoConfig) -> list[Path]:
    """The paths that have to be there."""
    slime = config.slime
    paths = [
        slime.root / "train.py",
        slime.megatron / "megatron",
        Path(config.model.init),
        Path(config.model.init) / "config.json",
    ]
    if isinstance(config, SftConfig):
        return paths + list(config.data.files)
    if slime.user.gpus and slime.user.checkpoint:
        paths += [slime.user.checkpoint, slime.user.checkpoint / "config.json"]
    return paths + ([config.chat.cookbook_prompt] if config.chat.cookbook_prompt else [])


def _gpus() -> tuple[Gpu, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
        pairs = [line.split(",") for line in asked.stdout.splitlines() if line.strip()]
        return tuple(Gpu(total=int(total) << 20, used=int(used) << 20) for total, used in pairs)
    except (OSError, subprocess.SubprocessError, ValueError):  # a broken driver: preflight says that it saw none
        return ()


def _commit(root: Path) -> str | None:
    """The commit of a checkout; None without git, as in an image that deleted it."""
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _existing(path: Path) -> Path:
    """The nearest directory above that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _lines(file: Path) -> int | None:
    try:
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError:
        return None


def _user_reachable(config: SftConfig | GrpoConfig) -> bool | None:
    if isinstance(config, SftConfig) or config.slime.user.gpus or config.user.kind != "llm" or not config.user.api_base:
        return None
    url = urlsplit(config.user.api_base)
    try:
        with socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _user_model(config: SftConfig | GrpoConfig) -> Mapping[str, Any]:
    """Empty where there is none, and where it cannot be read: a file that is missing is said as that."""
    checkpoint = config.slime.user.checkpoint
    if isinstance(config, SftConfig) or not config.slime.user.gpus or checkpoint is None:
        return {}
    try:
        found: Any = json.loads((checkpoint.expanduser() / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
