"""What the machine lacks for a training: software, files, GPUs, services, disk, memory. Pure functions of a config and facts."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from tau2rl import settings
from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.runs.provenance import library_versions
from tau2rl.slime.job import SlimeRun
from tau2rl.slime.layout import Layout
from tau2rl.slime.model import ModelShape
from tau2rl.slime.options import contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: `Problem(kind="error", message="8 GPUs are needed, 4 are there", hint="...")`."""

    kind: Literal["error", "warning"]  # a run with an error is not started
    message: str
    hint: str


def error(message: str, hint: str) -> Problem:
    """A reason not to start."""
    return Problem(kind="error", message=message, hint=hint)


def warning(message: str, hint: str) -> Problem:
    """Something to know."""
    return Problem(kind="warning", message=message, hint=hint)


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
        wandb_key=settings.secret("WANDB_API_KEY") is not None or Path("~/.netrc").expanduser().exists(),
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


GIB = 1 << 30
STATE_BYTES = 14  # a weight on disk: half precision, master copy, two moments
EXPORT_BYTES = 2  # and once more for Hugging Face
CUSTOMER = ("max_position_embeddings", "num_attention_heads")  # of `config.json`
SLIMES_CORES = (
    2  # of Ray's, beside one for each GPU: the rollout process, a lock (ray/placement_group.py:47,231, ray/rollout.py:403)
)
USED_BY_OTHERS = 2 * GIB  # memory of an idle GPU stays below this


def of_machine(config: SftConfig | GrpoConfig, layout: Layout, machine: Machine) -> Iterator[Problem]:
    """Everything that this machine has not, or not enough of."""
    yield from _software(config, machine)
    yield from _paths(machine)
    yield from _data(config, machine)
    yield from _gpu_problems(layout, machine)
    yield from _cores(config, layout, machine)
    yield from _services(config, machine)
    yield from _customer(config, machine)
    if machine.shape is not None:
        yield from _disk(config, machine.shape, machine)
        yield from _memory(config, machine.shape, layout, machine)


def _software(config: SftConfig | GrpoConfig, machine: Machine) -> Iterator[Problem]:
    pinned = contract().versions["slime"]
    if machine.numpy is None or not machine.numpy.startswith("1."):
        yield error(f"Megatron needs numpy 1, here is {machine.numpy or 'none'}", "run in slime's container; docs/cluster.md")
    if machine.slime_commit is None:
        yield warning(f"cannot tell which slime is in `{config.slime.root}`", f"our options are those of {pinned[:12]}")
    elif machine.slime_commit != pinned:
        yield warning(
            f"slime is at {machine.slime_commit[:12]}, our options are those of {pinned[:12]}",
            "check it out, or read docs/slime.md on how to move the pin",
        )
    if isinstance(config, GrpoConfig) and not machine.sglang:
        yield error("sglang cannot be imported here", "run in slime's container; docs/cluster.md")


def _paths(machine: Machine) -> Iterator[Problem]:
    for path in sorted(machine.missing):
        if path.parent not in machine.missing:
            yield error(
                f"`{path}` is not there", "the settings name it: model.init, data.files, slime.root, slime.megatron, slime.user"
            )


def _data(config: SftConfig | GrpoConfig, machine: Machine) -> Iterator[Problem]:
    checkpoint = Path(config.model.init)
    if checkpoint not in machine.missing and not machine.tokenizer:
        yield error(f"`{checkpoint}` has no tokenizer", "copy the tokenizer's files of the model that it was made from")
    wanted = config.train.batch_size if isinstance(config, SftConfig) else config.train.tasks_per_step
    if machine.rows is not None and machine.rows < wanted:
        yield error(f"{machine.rows} to train on are fewer than the {wanted} of a step", "more tasks or data, or a smaller step")
    if isinstance(config, GrpoConfig) and config.train.val_every and machine.eval_rows == 0:
        yield error("no task to look at", "`select` chooses them")


def _gpu_problems(layout: Layout, machine: Machine) -> Iterator[Problem]:
    there = machine.cluster_gpus if machine.cluster_gpus is not None else len(machine.gpus)
    if layout.total > there:
        yield error(f"{layout.total} GPUs are needed, {there} are there", f"{'; '.join(layout.lines())}")
    busy = [i for i, gpu in enumerate(machine.gpus) if gpu.used > USED_BY_OTHERS]
    if busy:
        yield warning(
            f"somebody uses GPU {', '.join(map(str, busy))} already", "`nvidia-smi` shows who: engines of a job that died?"
        )
    if layout.rollout and machine.engine_port_taken:
        yield warning("port 15000 is taken: engines of another job may be on this machine", "slime takes the next free ones")


def _cores(config: SftConfig | GrpoConfig, layout: Layout, machine: Machine) -> Iterator[Problem]:
    """Ray starts nothing without a core: slime would wait for ever, our workers for minutes."""
    workers = config.rollout.workers if isinstance(config, GrpoConfig) else 0
    needed = layout.total + SLIMES_CORES + workers
    if needed > machine.cores:
        ours = f", {workers} of them for rollout.workers" if workers else ""
        yield error(
            f"{needed} cores are needed{ours}; Ray has {machine.cores}",
            f"slime takes {layout.total + SLIMES_CORES}, one for each GPU and {SLIMES_CORES}: lower rollout.workers, "
            "or say `--num-cpus` to `ray start` where it sees fewer than there are",
        )


def _services(config: SftConfig | GrpoConfig, machine: Machine) -> Iterator[Problem]:
    if config.tracking.wandb == "online" and not machine.wandb_key:
        yield error("tracking.wandb `online` needs WANDB_API_KEY", "set it, or `offline`, and `wandb sync` later")
    if machine.user_reachable is False and isinstance(config, GrpoConfig):
        yield error(
            "the customer's server does not answer", "start it first (scripts/start_user_sim.sh), and look at user.api_base"
        )


def _customer(config: SftConfig | GrpoConfig, machine: Machine) -> Iterator[Problem]:
    """The model of the customer that the job serves: SGLang refuses what does not fit it, when all GPUs are taken."""
    user, longest, heads = config.slime.user, *(machine.user_model.get(key) for key in CUSTOMER)
    if isinstance(longest, int) and user.context_tokens > longest:
        yield error(
            f"the customer's model was made for {longest} tokens, not {user.context_tokens}", "lower slime.user.context_tokens"
        )
    if isinstance(heads, int) and heads % user.gpus_per_engine:
        yield error(
            f"the customer's {heads} attention heads cannot be shared by {user.gpus_per_engine} GPUs",
            f"slime.user.gpus_per_engine divides {heads}",
        )


def _disk(config: SftConfig | GrpoConfig, shape: ModelShape, machine: Machine) -> Iterator[Problem]:
    saves = math.ceil(config.train.steps / config.train.save_every)
    states = saves if config.slime.saves == "all" else min(saves, 2)  # one goes when the next is there
    needed = shape.parameters * (states * STATE_BYTES + saves * EXPORT_BYTES)
    if needed > machine.free_bytes:
        yield error(
            f"{saves} saves need {needed / GIB:.0f} GiB, {machine.free_bytes / GIB:.0f} are free",
            "slime.saves `last`, a larger train.save_every, or `--output` on a larger disk",
        )


def training_bytes(config: SftConfig | GrpoConfig, shape: ModelShape, layout: Layout) -> int:
    """Memory of a GPU that trains, at least: weights and gradients, its share of the optimizer, kept inputs of layers, logits.

    6 + 12 / copies bytes a weight is Megatron's own account of its distributed optimizer in mixed precision.
    """
    slime = config.slime
    split = slime.tensor_parallel * slime.pipeline_parallel
    weights = shape.parameters / split * (6 + 12 / max(1, layout.data_parallel * slime.context_parallel))
    inputs = slime.max_tokens_per_gpu * shape.hidden * 2 * shape.layers / split if slime.recompute else 0
    logits = slime.max_tokens_per_gpu * shape.vocab / slime.tensor_parallel * 4 * 2  # in full precision, and their gradient
    return int(weights + inputs + logits)


def _memory(config: SftConfig | GrpoConfig, shape: ModelShape, layout: Layout, machine: Machine) -> Iterator[Problem]:
    if not machine.gpus or layout.train % layout.model_parallel:
        return
    needed, there = training_bytes(config, shape, layout), min(gpu.total for gpu in machine.gpus)
    if needed > there:
        yield error(
            f"training needs {needed / GIB:.0f} GiB of a GPU at least, the smallest has {there / GIB:.0f}",
            "lower slime.max_tokens_per_gpu, raise slime.tensor_parallel or slime.context_parallel, or train on more GPUs",
        )
