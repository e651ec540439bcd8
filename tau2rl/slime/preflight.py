"""What slime would pass over in silence, or wait for without end, found before the start.

What slime or Megatron itself refuses with a clear error when it reads its options is not here. `validate`: settings that slime
cannot honor. `issues_of`: what goes wrong after minutes on GPUs, or never says so; of the settings alone, or of a machine too.
"""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tau2rl import settings
from tau2rl.backend import Issue, TrainingConfig
from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig, GrpoConfig, SftConfig
from tau2rl.errors import UserError
from tau2rl.slime.layout import ClusterLayout, layout_of
from tau2rl.slime.model import ModelShape
from tau2rl.slime.options import contract
from tau2rl.slime.process import JOB_CONFIG

GIB = 1 << 30
MASK = "qwen3_5"  # a family, and how slime finds the assistant's tokens in its template
STATE_BYTES, EXPORT_BYTES = 14, 2  # a weight on disk: half precision, master copy, two moments; and once more for Hugging Face
SLIMES_CORES = 2  # beside one for each GPU: the rollout process, a lock (ray/placement_group.py:47,231, ray/rollout.py:403)
ASK_SECONDS, CONNECT_SECONDS = 60.0, 5.0
_ASK_CLUSTER = "import ray; ray.init(log_to_driver=False); r = ray.cluster_resources(); print(r.get('GPU', 0), r.get('CPU', 0))"


def validate(config: TrainingConfig) -> None:
    """Refuse settings that slime cannot honor: none is dropped in silence. Raises UserError for the first one."""
    train = config.train
    if config.model.init == "tiny":
        raise UserError(
            "the slime backend cannot train model.init `tiny`", hint="give a checkpoint's directory, or backend `local`"
        )
    if train.export_every not in (0, train.save_every):
        raise UserError(
            f"slime writes whole checkpoints beside its saves, every {train.save_every} steps, not every {train.export_every}",
            hint="set train.export_every to 0 or to train.save_every",
        )
    if isinstance(config, SftConfig):
        _validate_sft(config)
    else:
        _validate_grpo(config)


def _validate_sft(config: SftConfig) -> None:
    if config.data.val_fraction:
        raise UserError(
            "slime computes no validation loss in supervised training", hint="`data.val_fraction` 0 trains on all rows"
        )
    default = type(config.train)()
    for name in ("val_every", "early_stopping_patience"):
        if getattr(config.train, name) != getattr(default, name):
            raise UserError(f"train.{name} has no effect under slime, which computes no validation loss", hint="leave it out")
    if config.data.allow_empty:
        raise UserError("data.allow_empty has no effect under slime", hint="leave it out: smoke runs are for the local backend")


def _validate_grpo(config: GrpoConfig) -> None:
    algo, train = config.algo, config.train
    episodes = train.tasks_per_step * config.rollout.num_samples
    if episodes % train.num_minibatches:
        raise UserError(
            f"{episodes} episodes of a rollout batch cannot be cut into {train.num_minibatches} equal minibatches",
            hint="train.num_minibatches divides train.tasks_per_step x rollout.num_samples",
        )
    if algo.loss_aggregation == "constant":
        if algo.kl_coef or algo.entropy_coef:
            raise UserError(
                "under slime algo.loss_aggregation `constant` divides the policy term alone, not KL and entropy",
                hint="set algo.kl_coef and algo.entropy_coef to 0, or algo.loss_aggregation to `token-mean`",
            )
        if config.slime.context_parallel > 1:
            raise UserError(
                "algo.loss_aggregation `constant` needs slime.context_parallel 1", hint="or algo.loss_aggregation `token-mean`"
            )
    if config.slime.user.gpus and (config.user.kind != "llm" or config.user.api_base):
        raise UserError(
            "slime.user serves the user simulator, but `user` says that it is somewhere else",
            hint="user.kind `llm` without user.api_base, or slime.user.gpus 0",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts about the machine that trains: `Machine(gpus=8, cores=64, ...)`."""

    gpus: int  # of the whole Ray cluster, of this machine where there is none yet
    cores: int
    slime_commit: str | None  # None: not a git checkout
    free_bytes: int  # where the run folder is
    user_answers: bool | None  # whether the user simulator's own server does; None: it has none


def read_machine(config: TrainingConfig, folder: Path) -> Machine:
    """Look at this machine. Takes seconds, changes nothing."""
    cluster = _cluster()
    gpus, cores = cluster or (_local_gpus(), settings.available_cores())
    return Machine(
        gpus=gpus,
        cores=cores,
        slime_commit=_ask("git", "-c", "safe.directory=*", "-C", str(config.slime.root), "rev-parse", "HEAD"),
        free_bytes=shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free,
        user_answers=_user_answers(config),
    )


def issues_of(config: TrainingConfig, shape: ModelShape | None = None, machine: Machine | None = None) -> list[Issue]:
    """Everything that is wrong, errors first. Without a machine only what the settings say."""
    layout = layout_of(config)
    found = [*_layout(config, layout), *_sizes(config, layout, shape), *_template(config)]
    if isinstance(config, GrpoConfig):
        found += _rollouts(config, layout)
    if machine is not None:
        found += _machine(config, layout, machine)
        if shape is not None:
            found += _disk(config, shape, machine)
    return sorted(found, key=lambda issue: issue.kind != "error")


def _error(message: str, hint: str) -> Issue:
    return Issue(kind="error", message=message, hint=hint)


def _warning(message: str, hint: str) -> Issue:
    return Issue(kind="warning", message=message, hint=hint)


def _layout(config: TrainingConfig, layout: ClusterLayout) -> Iterator[Issue]:
    """slime gives what is left over to nobody."""
    slime = config.slime
    if layout.policy % slime.gpus_per_engine:
        yield _error(
            f"{layout.policy} GPUs that serve the policy cannot be cut into engines of {slime.gpus_per_engine}",
            "slime.gpus_per_engine divides slime.policy_gpus; under `colocate` the GPUs that train",
        )
    if layout.user % slime.user.gpus_per_engine:
        yield _error(
            f"{layout.user} GPUs that serve the user simulator cannot be cut into engines of {slime.user.gpus_per_engine}",
            "slime.user.gpus_per_engine divides slime.user.gpus",
        )
    parsers = contract().options["--sglang-tool-call-parser"].choices
    if layout.user and slime.user.tool_parser not in parsers:
        yield _error(
            f"SGLang has no tool parser `{slime.user.tool_parser}`", f"slime.user.tool_parser is one of: {', '.join(parsers)}"
        )


def _sizes(config: TrainingConfig, layout: ClusterLayout, shape: ModelShape | None) -> Iterator[Issue]:
    """Batches, schedule, context: Megatron looks at the first two when its actors are up, at the last never."""
    slime, train, copies = config.slime, config.train, layout.data_parallel
    if isinstance(config, SftConfig):
        batch, steps, knob = config.train.batch_size, train.steps, "train.batch_size"
        longest, limit = config.data.max_tokens, "data.max_tokens"
    else:
        minibatches = config.train.num_minibatches
        batch, steps = config.train.tasks_per_step * config.rollout.num_samples // minibatches, train.steps * minibatches
        knob = "train.tasks_per_step x rollout.num_samples"
        longest, limit = config.limits.context_tokens, "limits.context_tokens"
    if copies and batch % copies:
        yield _error(
            f"a step of {batch} cannot be cut into equal shares for the {copies} copies of the model that train",
            f"make {knob} a multiple of {copies}, or change the GPUs that train or slime.tensor_parallel",
        )
    if train.warmup_steps >= steps:
        yield _error(f"{train.warmup_steps} warm-up steps do not end within {steps}", "lower train.warmup_steps")
    passes = slime.max_tokens_per_gpu * slime.context_parallel
    if longest > passes:  # THUDM/slime#1951
        yield _error(
            f"{limit} lets {longest} tokens through, a forward pass holds {passes}: a longer one runs out of memory",
            f"lower {limit}, or raise slime.max_tokens_per_gpu or slime.context_parallel",
        )
    if shape is not None and longest > shape.longest and isinstance(config, GrpoConfig):
        yield _error(f"the model was made for {shape.longest} tokens, not {longest}", f"lower {limit}")
    if shape is not None and shape.family == MASK and isinstance(config, SftConfig) and slime.loss_mask != MASK:
        yield _error(f"slime.loss_mask `{slime.loss_mask}` does not read the template of `{MASK}`", f"slime.loss_mask `{MASK}`")


def _template(config: TrainingConfig) -> Iterator[Issue]:
    """The proof that the chat template does what the protocol promises, where the tokenizer is on this machine."""
    start = Path(config.model.init)
    if not (start / "tokenizer_config.json").exists():
        return
    asked = config.chat if isinstance(config, GrpoConfig) else ChatConfig()
    try:
        make_codec(asked.model_copy(update={"tokenizer": asked.tokenizer or str(start)}))
    except UserError as error:
        yield _error(error.message, error.hint)


def _rollouts(config: GrpoConfig, layout: ClusterLayout) -> Iterator[Issue]:
    slime, train = config.slime, config.train
    if train.val_every % train.save_every:
        yield _warning(
            f"validation every {train.val_every} steps falls between saves every {train.save_every}: the best may not be there",
            "make train.val_every a multiple of train.save_every",
        )
    if slime.overlap and config.algo.correction == "none":
        yield _warning("with slime.overlap the policy that plays is one step old", "algo.correction `tis` corrects for it")
    if slime.extra.get("router-policy") == "consistent_hashing" and layout.user_engines > 1:
        yield _warning(
            "`consistent_hashing` sends all requests of one API key to one engine: the user simulator's are all alike",
            "leave slime.extra.router-policy out, or serve the user simulator from one engine",
        )


def _machine(config: TrainingConfig, layout: ClusterLayout, machine: Machine) -> Iterator[Issue]:
    """Ray starts nothing without its GPU or core: slime would wait for ever, our workers for minutes."""
    pinned, workers = contract().versions["slime"], config.rollout.workers if isinstance(config, GrpoConfig) else 0
    if machine.slime_commit != pinned:
        here = f"slime is at {machine.slime_commit[:12]}" if machine.slime_commit else "slime's commit is not known"
        yield _warning(f"{here}, our options are those of {pinned[:12]}", "docs/slime.md says how to move the pin")
    if layout.total > machine.gpus:
        without = "\nwithout GPUs `python -m scripts.rehearse_layout FILE`, in a clone, rehearses the layout against stand-ins"
        hint = "; ".join(layout.lines()) + (without if not machine.gpus else "")
        yield _error(f"{layout.total} GPUs are needed, {machine.gpus} are there", hint)
    needed = layout.total + SLIMES_CORES + workers
    if needed > machine.cores:
        ours = f", {workers} of them for rollout.workers" if workers else ""
        yield _error(
            f"{needed} cores are needed{ours}; Ray has {machine.cores}",
            f"slime takes {layout.total + SLIMES_CORES}, one for each GPU and {SLIMES_CORES}: lower rollout.workers, "
            "or say `--num-cpus` to `ray start` where it sees fewer than there are",
        )
    if machine.user_answers is False:
        yield _error(
            "the user simulator's server does not answer", "start it first (scripts/start_user_sim.sh), and look at user.api_base"
        )


def _disk(config: TrainingConfig, shape: ModelShape, machine: Machine) -> Iterator[Issue]:
    saves = math.ceil(config.train.steps / config.train.save_every)
    states = saves if config.slime.saves == "all" else min(saves, 2)  # one goes when the next is there
    needed = shape.parameters * (states * STATE_BYTES + saves * EXPORT_BYTES)
    if needed > machine.free_bytes:
        yield _error(
            f"{saves} saves need {needed / GIB:.0f} GiB, {machine.free_bytes / GIB:.0f} are free",
            "slime.saves `last`, a larger train.save_every, or `--output` on a larger disk",
        )


def _cluster() -> tuple[int, int] | None:
    """GPUs and cores of the whole cluster that this job runs on; None outside a job, and where the cluster does not say."""
    if JOB_CONFIG not in settings.child_environment():
        return None
    said = _ask(settings.python(), "-c", _ASK_CLUSTER)  # in a process of its own: connecting takes over signals and output
    try:
        gpus, cores = (said or "").split()[-2:]
        return int(float(gpus)), int(float(cores))
    except ValueError:
        return None


def _local_gpus() -> int:
    listed = _ask("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
    return len(listed.splitlines()) if listed else 0


def _ask(*command: str) -> str | None:
    """What a program says; None where there is none, or it breaks."""
    try:
        asked = subprocess.run(
            command, env=settings.child_environment(), capture_output=True, text=True, timeout=ASK_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()


def _user_answers(config: TrainingConfig) -> bool | None:
    if isinstance(config, SftConfig) or config.slime.user.gpus or config.user.kind != "llm" or not config.user.api_base:
        return None
    url = urlsplit(config.user.api_base)
    try:
        with socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
