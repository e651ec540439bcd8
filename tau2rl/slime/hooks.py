"""What slime calls. Thin: each hook finds the process's one object, calls what every backend uses, and speaks slime's language.

slime finds them by their dotted names on its command line (`argv.py`) and loads this file in its rollout process and in its
trainers; only what runs there is imported there. Signatures and times of call: slime/utils/arguments.py, slime/ray/rollout.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tau2rl.config import GrpoConfig, SamplingConfig, UserConfig
from tau2rl.errors import UserError
from tau2rl.slime.advantages import score_batch
from tau2rl.slime.job import received, user_config
from tau2rl.slime.rollout import unless
from tau2rl.slime.samples import fill, flat, give_up, marks_of, members, task_of

if TYPE_CHECKING:
    from slime.utils.types import Sample

    from tau2rl.slime.rollout import Rollout

CARRIER = "teacher_log_probs"  # the one float a token that slime ships to its trainers, slices and moves to the GPU


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False) -> Sample:
    """`--custom-generate-function-path`: one whole episode. What goes wrong in it makes a sample that counts nowhere.

    Raises, and so ends the job, only for a request that cannot be carried out (UserError) and for a world that stays broken
    (RunIncomplete).
    """
    from slime.rollout.sglang_rollout import GenerateState

    state, rollout, task = GenerateState(args), _rollout(args), task_of(sample)
    if not rollout.ready:
        router = f"http://{args.sglang_router_ip}:{args.sglang_router_port}"
        user = _user(args, rollout.config)
        await asyncio.to_thread(rollout.prepare, router=router, user=user, tokenizer=args.hf_checkpoint)
    sampling = SamplingConfig(
        temperature=sampling_params["temperature"],
        top_p=sampling_params["top_p"],
        top_k=sampling_params["top_k"],
        max_tokens=sampling_params["max_new_tokens"],
    )
    budget = args.eval_max_context_len if evaluation else args.rollout_max_context_len
    attempt = rollout.attempt(task, sample.index or 0, look=evaluation)
    context_tokens = budget or rollout.config.limits.context_tokens
    play = rollout.play(attempt, sampling, context_tokens=context_tokens, look=evaluation)
    played = await unless(lambda: state.aborted, play)
    if played is not None:
        return fill(args, sample, played, evaluation=evaluation)
    give_up(args, sample, task)
    rollout.journal.ended_early(marks_of(sample))
    return sample


def keep_group(args: Any, group: list[Any], **_: Any) -> Any:
    """`--dynamic-sampling-filter-path`: groups that teach nothing are left out, up to a cap, so that every round ends."""
    from slime.rollout.filter_hub.base_types import DynamicFilterOutput

    rollout = _rollout(args)
    samples = flat(group)
    scored = score_batch(members(samples), rollout.config.algo)
    most = rollout.config.algo.max_resample_rounds * args.rollout_batch_size
    if any(scored.teaches) or rollout.dropped >= most:
        return DynamicFilterOutput(keep=True)
    rollout.dropped += 1
    evidence = any(marks_of(sample).evidence for sample in samples)
    return DynamicFilterOutput(keep=False, reason="same_scores" if evidence else "no_evidence")


def post_process_rewards(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """`--custom-reward-post-process-path`: tau2's rewards for the curves, advantages for the trainer.

    What is no evidence, or of a group that teaches nothing, is out of the loss and of what it is divided by; an attempt of
    average worth is in both, as with the local backend. An estimator of turns gives every sample one advantage a token to carry.
    """
    scored = score_batch(members(samples), received(args).grpo.algo)
    for number, sample in enumerate(samples):
        sample.remove_sample = sample.remove_sample or not scored.teaches[number]
        if scored.tokens is not None:
            setattr(sample, CARRIER, scored.tokens[number])
    return scored.raw, scored.rewards


def turn_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """`--custom-advantage-function-path`, in the trainers: takes what `post_process_rewards` gave each sample to carry."""
    carried = rollout_data.pop(CARRIER, None)
    if carried is None:
        raise RuntimeError(f"no `{CARRIER}` in the batch: `post_process_rewards` has not run, or slime no longer ships it")
    rollout_data["advantages"] = carried
    rollout_data["returns"] = [values.clone() for values in carried]


def log_rollout(rollout_id: int, args: Any, samples: list[Sample], extra_metrics: dict[str, Any] | None, seconds: float) -> bool:
    """`--custom-rollout-log-function-path`: our numbers, into our file and among slime's own, which it goes on to write."""
    rollout = _rollout(args)
    rollout.dropped = 0
    numbers = rollout.journal.round(rollout_id, members(samples), seconds)
    if extra_metrics is not None:
        extra_metrics.update({f"rollout/tau2rl/{name}": value for name, value in numbers.items() if value is not None})
    return False


def log_eval(rollout_id: int, args: Any, data: dict[str, dict[str, Any]], extra_metrics: dict[str, Any] | None) -> bool:
    """`--custom-eval-rollout-log-function-path`: the look at the selection tasks, kept; what FAILED moves no mean of slime's."""
    from slime.observability import logging_utils
    from slime.observability.metric_utils import compute_rollout_step

    marks = [marks_of(sample) for found in data.values() for sample in found["samples"]]
    _, numbers = _rollout(args).journal.look(rollout_id, marks)
    for found in data.values():
        solved = [marks_of(sample).reward for sample in found["samples"]]
        known = [reward for reward in solved if reward is not None]
        mean = sum(known) / len(known) if known else 0.0
        found["rewards"] = [mean if reward is None else reward for reward in solved]
    ours = {f"eval/tau2rl/{name}": value for name, value in numbers.items() if value is not None}
    logging_utils.log(args, {**ours, "eval/step": compute_rollout_step(args, rollout_id)}, step_key="eval/step")
    return False


def _rollout(args: Any) -> Rollout:
    from tau2rl.slime.rollout import rollout_of  # tau2 with it: seconds and memory that a trainer has no use for

    return rollout_of(args)


def _user(args: Any, config: GrpoConfig) -> UserConfig:
    """The customer: served by this job, or what the settings name."""
    from slime.rollout.sglang_rollout import get_model_url

    if not config.slime.user.gpus:
        return user_config(config, None)
    name = config.slime.user.name
    if name not in (args.sglang_model_routers or {}):  # slime would answer with the policy's own server
        raise UserError(f"slime serves no model `{name}`", hint="`--sglang-config` names it; `tau2rl grpo` writes that file")
    return user_config(config, get_model_url(args, name, "/v1"))
