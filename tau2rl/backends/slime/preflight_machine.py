"""What the machine lacks for a training: software, files, GPUs, services, disk, memory. Pure functions of a config and facts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tau2rl.backends.slime.contract import contract
from tau2rl.backends.slime.layout import Layout
from tau2rl.backends.slime.machine import Machine
from tau2rl.backends.slime.model_shape import ModelShape
from tau2rl.backends.slime.problems import Problem, error, warning
from tau2rl.config import GrpoConfig, SftConfig

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
    yield from _gpus(layout, machine)
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
    if isinstance(config, GrpoConfig) and config.train.eval_every and machine.eval_rows == 0:
        yield error("no task to look at", "`select` chooses them")


def _gpus(layout: Layout, machine: Machine) -> Iterator[Problem]:
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
