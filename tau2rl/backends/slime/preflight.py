"""What would go wrong after minutes on GPUs, found in seconds: every check is a pure function of a config and facts.

slime asserts most of this when its actors are up (`backends/megatron_utils/initialize.py:66-79`, `ray/rollout.py:1127`,
`utils/dp_schedule.py:135`), and some of it never: an episode longer than a forward pass runs out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tau2rl.backends.slime.contract import contract
from tau2rl.backends.slime.layout import Layout, layout_of
from tau2rl.backends.slime.machine import Machine
from tau2rl.backends.slime.model_shape import ModelShape
from tau2rl.backends.slime.objective import MISMATCH, objective
from tau2rl.config import GrpoConfig, SftConfig

GIB = 1 << 30
STATE_BYTES = 14  # a weight on disk: half precision, master copy, two moments
EXPORT_BYTES = 2  # and once more for Hugging Face
CUSTOMER = ("max_position_embeddings", "num_attention_heads")  # of `config.json`
USED_BY_OTHERS = 2 * GIB  # memory of an idle GPU stays below this


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: `Problem(kind="error", message="8 GPUs are needed, 4 are there", hint="...")`."""

    kind: Literal["error", "warning"]  # a run with an error is not started
    message: str
    hint: str


def preflight(config: SftConfig | GrpoConfig, machine: Machine | None = None) -> list[Problem]:
    """Everything that is wrong, errors first. Without a machine only what the config itself says."""
    layout, shape = layout_of(config), machine.shape if machine else None
    found = [*_layout(config, layout), *_batches(config, layout), *_context(config)]
    if isinstance(config, GrpoConfig):
        found += _rollouts(config)
    if shape is not None:
        found += _model(config, shape)
    if machine is not None:
        found += [*_software(config, machine), *_paths(machine), *_data(config, machine), *_gpus(layout, machine)]
        found += [*_services(config, machine), *_customer(config, machine)]
        if shape is not None:
            found += [*_disk(config, shape, machine), *_memory(config, shape, layout, machine)]
    return sorted(found, key=lambda problem: problem.kind != "error")


def error(message: str, hint: str) -> Problem:
    """A reason not to start."""
    return Problem(kind="error", message=message, hint=hint)


def warning(message: str, hint: str) -> Problem:
    """Something to know."""
    return Problem(kind="warning", message=message, hint=hint)


def _layout(config: SftConfig | GrpoConfig, layout: Layout) -> Iterator[Problem]:
    slime = config.slime
    if layout.train % layout.model_parallel:
        yield error(
            f"{layout.train} GPUs that train are not a multiple of the {layout.model_parallel} that hold one copy of the model",
            "tensor_parallel x pipeline_parallel x context_parallel divides train_nodes x train_gpus",
        )
    if slime.train_gpus > slime.gpus_per_node:
        yield error(f"{slime.train_gpus} of {slime.gpus_per_node} GPUs of a machine cannot train", "see slime.gpus_per_node")
    if slime.tensor_parallel > slime.train_gpus:
        yield warning("a layer is shared by GPUs of several machines, which is slow", "slime.tensor_parallel within one machine")
    if layout.policy % slime.gpus_per_engine:
        yield error(
            f"{layout.policy} GPUs that serve the policy cannot be cut into engines of {slime.gpus_per_engine}",
            "slime.gpus_per_engine divides slime.policy_gpus; under `colocate` the GPUs that train",
        )
    if layout.user % slime.user.gpus_per_engine:
        yield error(
            f"{layout.user} GPUs that serve the customer cannot be cut into engines of {slime.user.gpus_per_engine}",
            "slime.user.gpus_per_engine divides slime.user.gpus",
        )
    parsers = contract().options["--sglang-tool-call-parser"].choices
    if layout.user and slime.user.tool_parser not in parsers:
        yield error(
            f"SGLang has no tool parser `{slime.user.tool_parser}`", f"slime.user.tool_parser is one of: {', '.join(parsers)}"
        )


def batch(config: SftConfig | GrpoConfig) -> int:
    """Episodes or conversations of one optimizer step."""
    if isinstance(config, SftConfig):
        return config.train.batch_size
    return config.train.tasks_per_step * config.rollout.num_samples // config.train.updates_per_batch


def _batches(config: SftConfig | GrpoConfig, layout: Layout) -> Iterator[Problem]:
    copies, size = layout.data_parallel, batch(config)
    knob = "train.batch_size" if isinstance(config, SftConfig) else "train.tasks_per_step x rollout.num_samples"
    if copies and size % copies:
        yield error(
            f"a step of {size} cannot be cut into equal shares for the {copies} copies of the model that train",
            f"make {knob} a multiple of {copies}, or change the GPUs that train or slime.tensor_parallel",
        )
    updates = 1 if isinstance(config, SftConfig) else config.train.updates_per_batch
    steps = config.train.steps * updates
    if config.train.warmup_steps >= steps:
        yield error(f"{config.train.warmup_steps} warm-up steps do not end within {steps}", "lower train.warmup_steps")


def _context(config: SftConfig | GrpoConfig) -> Iterator[Problem]:
    slime = config.slime
    room = slime.max_tokens_per_gpu * slime.context_parallel
    if isinstance(config, SftConfig):
        knob, longest = "data.max_tokens", config.data.max_tokens
    else:
        knob, longest = "limits.context_tokens", config.limits.context_tokens
    if longest > room:
        yield error(
            f"{knob} lets {longest} tokens through, a forward pass holds {room}: a longer one runs out of memory",
            f"lower {knob}, or raise slime.max_tokens_per_gpu or slime.context_parallel",
        )
    if isinstance(config, GrpoConfig) and config.sampling.max_tokens >= config.limits.context_tokens:
        yield error(
            "one turn may be as long as the whole conversation",
            "sampling.max_tokens is of a turn, limits.context_tokens of prompt and all turns",
        )


def _rollouts(config: GrpoConfig) -> Iterator[Problem]:
    slime, train = config.slime, config.train
    if train.eval_every % train.save_every:
        yield warning(
            f"looks every {train.eval_every} steps fall between saves every {train.save_every}: what looks best may not be there",
            "make train.eval_every a multiple of train.save_every",
        )
    if slime.overlap and config.algo.correction == "none":
        yield warning("with slime.overlap the policy that plays is one step old", "`--set algo.correction=tis` corrects for it")
    if MISMATCH in objective(config) and slime.layout == "colocate" and config.algo.correction_level == "sequence":
        yield warning(
            "a weight of whole sequences varies wildly over thousands of tokens", "algo.correction_level `geometric` or `token`"
        )


def _model(config: SftConfig | GrpoConfig, shape: ModelShape) -> Iterator[Problem]:
    slime = config.slime
    for what, count, parts, knob in (
        ("attention heads", shape.heads, slime.tensor_parallel, "slime.tensor_parallel"),
        ("heads of keys and values", shape.groups, slime.tensor_parallel, "slime.tensor_parallel"),
        ("feed-forward units", shape.ffn, slime.tensor_parallel, "slime.tensor_parallel"),
        ("layers", shape.layers, slime.pipeline_parallel, "slime.pipeline_parallel"),
        ("attention heads", shape.heads, slime.gpus_per_engine, "slime.gpus_per_engine"),
    ):
        if count % parts:
            yield error(f"the model's {count} {what} cannot be shared by {parts} GPUs", f"{knob} divides {count}")
    if isinstance(config, GrpoConfig) and config.limits.context_tokens > shape.longest:
        yield error(
            f"the model was made for {shape.longest} tokens, not {config.limits.context_tokens}", "lower limits.context_tokens"
        )


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
