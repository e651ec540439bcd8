"""What slime calls. Thin: each hook finds the process's one object, calls what every backend uses, and speaks slime's language.

slime finds them by their dotted names on its command line (`argv.py`). The first five run in its rollout process,
the others in each of its trainers; only what runs there is imported there. Signatures and times of call:
slime/utils/arguments.py, slime/ray/rollout.py, slime/backends/megatron_utils/actor.py, model.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tau2rl import plugins
from tau2rl.config import GrpoConfig, SamplingConfig
from tau2rl.errors import UserError
from tau2rl.slime.advantages import Member, batch_advantages
from tau2rl.slime.run_context import run_context, served_user
from tau2rl.slime.samples import KEY, fill, flat_samples, give_up, metadata_of, task_of

if TYPE_CHECKING:
    from slime.utils.types import Sample

    from tau2rl.slime.rollout import Rollout

CARRIER = "teacher_log_probs"  # the one float a token that slime ships to its trainers, slices and moves to the GPU


# In the rollout process


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False) -> Sample | list[Sample]:
    """`--custom-generate-function-path`: one whole episode. What goes wrong in it makes a sample that counts nowhere.

    An episode whose template takes thoughts out is a list of samples, and so is then every other one to be trained on: slime
    flattens the groups of a rollout by the shape of the first. Nothing is trained on in a validation: one sample each.

    Raises only for a request that cannot be carried out (UserError) and where nothing works any more (RunIncomplete). slime ends
    its job then; a slime that went on would hear the same from `get_samples`, `keep_group` and `log_rollout`.
    """
    from slime.rollout.sglang_rollout import GenerateState

    state, rollout = GenerateState(args), _rollout(args)
    sampling = SamplingConfig(
        temperature=sampling_params["temperature"],
        top_p=sampling_params["top_p"],
        top_k=sampling_params["top_k"],
        max_tokens=sampling_params["max_new_tokens"],
    )
    with rollout.remember_fatal():
        if not rollout.ready:
            router = f"http://{args.sglang_router_ip}:{args.sglang_router_port}"
            await asyncio.to_thread(rollout.prepare, _resolved(args, rollout.config), router=router)
        attempt = rollout.attempt(task_of(sample), sample.index or 0, validation=evaluation)
        played = await rollout.play(attempt, sampling, validation=evaluation, aborted=lambda: state.aborted)
    if played is not None:
        filled = fill(args, sample, played, evaluation=evaluation)
    else:
        filled = [give_up(args, sample)]
        rollout.log.add_aborted(metadata_of(sample))
    return filled if _fans_out(rollout.config) and not evaluation else filled[0]


def keep_group(args: Any, group: list[Any], **_: Any) -> Any:
    """`--dynamic-sampling-filter-path`: groups without a signal are left out, up to a cap, so that every rollout ends."""
    from slime.rollout.filter_hub.base_types import DynamicFilterOutput

    rollout = _rollout(args)
    rollout.raise_fatal()
    samples = flat_samples(group)
    found = batch_advantages(members_of(samples), rollout.config.algo)
    most = rollout.config.algo.max_resample_rounds * args.rollout_batch_size
    if any(found.trained) or rollout.dropped >= most:
        return DynamicFilterOutput(keep=True)
    rollout.dropped += 1
    evidence = any(metadata_of(sample).evidence for sample in samples)
    return DynamicFilterOutput(keep=False, reason="same_scores" if evidence else "no_evidence")


def post_process_rewards(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """`--custom-reward-post-process-path`: tau2's rewards for the curves, advantages for the trainer.

    What is no evidence, or of a group without a signal, is out of the loss and of what it is divided by; an attempt with an
    average score is in both, as with the local backend. An estimator of turns gives each sample one advantage a token to carry.
    """
    for sample in samples:
        if KEY not in sample.metadata:  # slime made up for a `generate` that raised, or never called it
            give_up(args, sample)
    found = batch_advantages(members_of(samples), run_context(args).grpo.algo)
    for number, sample in enumerate(samples):
        sample.remove_sample = sample.remove_sample or not found.trained[number]
        if found.tokens is not None:
            setattr(sample, CARRIER, found.tokens[number])
    return found.raw, found.rewards


def log_rollout(rollout_id: int, args: Any, samples: list[Sample], extra_metrics: dict[str, Any] | None, seconds: float) -> bool:
    """`--custom-rollout-log-function-path`: our numbers, into our file and among slime's own, which it goes on to write."""
    rollout = _rollout(args)
    rollout.raise_fatal()
    rollout.dropped = 0
    numbers = rollout.log.end_rollout(rollout_id, members_of(samples), seconds)
    if extra_metrics is not None:
        extra_metrics.update({f"rollout/tau2rl/{name}": value for name, value in numbers.items() if value is not None})
    return False


def log_eval(rollout_id: int, args: Any, data: dict[str, dict[str, Any]], extra_metrics: dict[str, Any] | None) -> bool:
    """`--custom-eval-rollout-log-function-path`: the validation, kept; what FAILED moves no mean of slime's."""
    from slime.observability import logging_utils
    from slime.observability.metric_utils import compute_rollout_step

    rollout = _rollout(args)
    rollout.raise_fatal()
    numbers = rollout.log.end_validation(rollout_id)
    for found in data.values():
        rewards = [metadata_of(sample).reward for sample in found["samples"]]
        known = [reward for reward in rewards if reward is not None]
        mean = sum(known) / len(known) if known else 0.0
        found["rewards"] = [mean if reward is None else reward for reward in rewards]
    ours = {f"eval/tau2rl/{name}": value for name, value in numbers.items() if value is not None}
    logging_utils.log(args, {**ours, "eval/step": compute_rollout_step(args, rollout_id)}, step_key="eval/step")
    return False


def members_of(samples: Sequence[Sample]) -> list[Member]:
    """The samples as `batch_advantages` compares them."""
    return [
        Member(
            metadata=metadata_of(sample),
            group=sample.index if sample.group_index is None else ("group", sample.group_index),
            attempt=("sample", sample.index) if sample.rollout_id is None else ("rollout", sample.rollout_id),
            length=sample.response_length,
        )
        for sample in samples
    ]


def _fans_out(config: GrpoConfig) -> bool:
    """Whether an attempt may be several samples. What a protocol of the user's does with thoughts is not known."""
    return config.chat.thinking == "per-turn" or plugins.is_reference(config.chat.protocol)


def _rollout(args: Any) -> Rollout:
    from tau2rl.slime.rollout import rollout_of  # tau2 with it: seconds and memory that a trainer has no use for

    return rollout_of(args)


def _resolved(args: Any, config: GrpoConfig) -> GrpoConfig:
    """The settings with what only the job knows: where it serves the user simulator, the checkpoint whose tokenizer is used."""
    from slime.rollout.sglang_rollout import get_model_url

    chat = config.chat.model_copy(update={"tokenizer": config.chat.tokenizer or args.hf_checkpoint})
    user, name = config.user, config.slime.user.name
    if config.slime.user.gpus:
        if name not in (args.sglang_model_routers or {}):  # slime would answer with the policy's own server
            raise UserError(f"slime serves no model `{name}`", hint="`--sglang-config` names it; `tau2rl grpo` writes that file")
        user = served_user(config, get_model_url(args, name, "/v1"))
    return config.model_copy(update={"chat": chat, "user": user})


# In the trainers


def turn_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """`--custom-advantage-function-path`: takes what `post_process_rewards` gave each sample to carry."""
    carried = rollout_data.pop(CARRIER, None)
    if carried is None:
        raise RuntimeError(f"no `{CARRIER}` in the batch: `post_process_rewards` has not run, or slime no longer ships it")
    rollout_data["advantages"] = carried
    rollout_data["returns"] = [values.clone() for values in carried]


def count_trained(args: Any, rollout_id: int, rollout_data: dict[str, Any]) -> None:
    """`--rollout-data-postprocess-path`: the attempts that each optimizer step learns from, over all ranks.

    slime divides a loss that is a mean over attempts (`seq-mean`, `constant`) by the size of the step, samples that were removed
    too; `global_batch_sizes` is that divisor, and becomes the number that is left. `before_train_step` makes up for the rest.
    """
    import torch
    from megatron.core import mpu

    sums, masks = rollout_data["rollout_mask_sums"], rollout_data["loss_masks"]
    # An attempt in several samples, perhaps on several ranks, is one: each has its share of the attempt's tokens.
    shares = [float(mask.sum() / total) if total else 0.0 for mask, total in zip(masks, sums, strict=True)]
    micro_batches = iter(rollout_data["micro_batch_indices"])
    counts = torch.tensor(
        [sum(shares[i] for _ in range(n) for i in next(micro_batches)) for n in rollout_data["num_microbatches"]],
        dtype=torch.float32,
        device=sums.device,
    )
    torch.distributed.all_reduce(counts, group=mpu.get_data_parallel_group(with_context_parallel=False))
    args.tau2rl_trained = [round(count) for count in counts.tolist()]
    if not args.calculate_per_token_loss:
        rollout_data["global_batch_sizes"][:] = [max(1, count) for count in args.tau2rl_trained]


def before_train_step(args: Any, rollout_id: int, step_id: int, model: Any, optimizer: Any, scheduler: Any) -> None:
    """`--custom-megatron-before-train-step-hook-path`: a step with nothing to learn from moves no weight, as with `local`.

    Adam would move them by what it remembers, and by weight decay. The schedule counts every step that is taken as a whole one,
    whatever `count_trained` has left of it.
    """
    if args.tau2rl_trained[step_id]:
        _once(scheduler, lambda step: lambda increment: step(increment=args.global_batch_size))
    else:
        _once(optimizer, lambda _: lambda: (True, 0.0, None))  # succeeded, gradient norm, zeros in the gradient
        _once(scheduler, lambda _: lambda increment: None)


def _once(owner: Any, replaced_by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace `owner.step` for its next call."""
    own = owner.step

    def step(**arguments: Any) -> Any:
        owner.step = own
        return replaced_by(own)(**arguments)

    owner.step = step


def scaled_sum(
    total_lengths: Sequence[int], response_lengths: Sequence[int], loss_masks: Sequence[Any], per_token: bool
) -> Callable[[Any], Any]:
    """`--custom-pg-loss-reducer-function-path`: Dr. GRPO's sum of an attempt's tokens, divided by `algo.loss_scale`.

    Over the samples of a micro-batch, whose tokens' terms lie behind each other in one tensor; slime divides by the number of
    attempts of the step afterwards (slime/backends/megatron_utils/loss.py:1352-1358). It hands over no `args`, but Megatron has
    the same ones.
    """
    from megatron.training.global_vars import get_args

    assert not per_token  # slime would divide by the number of tokens once more
    scale = run_context(get_args()).grpo.algo.loss_scale

    def reduce(terms: Any) -> Any:
        parts = terms.split(list(response_lengths), dim=0)
        return sum((part * mask).sum() for part, mask in zip(parts, loss_masks, strict=True)) / scale

    return reduce
