"""What would go wrong after minutes on GPUs, found in seconds: every check is a pure function of a config and facts.

slime asserts most of this when its actors are up (`backends/megatron_utils/initialize.py:66-79`, `ray/rollout.py:1127`,
`utils/dp_schedule.py:135`), and some of it never: an episode longer than a forward pass runs out of memory. What the settings
themselves say is here, what the machine lacks in `preflight_machine.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.slime.layout import Layout, layout_of
from tau2rl.slime.machine import Machine, Problem, error, of_machine, warning
from tau2rl.slime.model import ModelShape
from tau2rl.slime.objective import MISMATCH, objective
from tau2rl.slime.options import contract


def preflight(config: SftConfig | GrpoConfig, machine: Machine | None = None) -> list[Problem]:
    """Everything that is wrong, errors first. Without a machine only what the config itself says."""
    layout, shape = layout_of(config), machine.shape if machine else None
    found = [*_layout(config, layout), *_batches(config, layout), *_context(config)]
    if isinstance(config, GrpoConfig):
        found += _rollouts(config)
    if shape is not None:
        found += _model(config, shape)
    if machine is not None:
        found += of_machine(config, layout, machine)
    return sorted(found, key=lambda problem: problem.kind != "error")


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
    return config.train.tasks_per_step * config.rollout.num_samples // config.train.num_minibatches


def _batches(config: SftConfig | GrpoConfig, layout: Layout) -> Iterator[Problem]:
    copies, size = layout.data_parallel, batch(config)
    knob = "train.batch_size" if isinstance(config, SftConfig) else "train.tasks_per_step x rollout.num_samples"
    if copies and size % copies:
        yield error(
            f"a step of {size} cannot be cut into equal shares for the {copies} copies of the model that train",
            f"make {knob} a multiple of {copies}, or change the GPUs that train or slime.tensor_parallel",
        )
    updates = 1 if isinstance(config, SftConfig) else config.train.num_minibatches
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
    if train.val_every % train.save_every:
        yield warning(
            f"looks every {train.val_every} steps fall between saves every {train.save_every}: what looks best may not be there",
            "make train.val_every a multiple of train.save_every",
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
