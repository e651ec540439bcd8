"""The command line of slime's `train.py`, whole: what each setting becomes there. Pure; read it in a diff before paying for GPUs.

`FIXED` never depends on the settings. Numbers without a source beside them are those of slime's own script for this size
(`scripts/run-qwen3-4B.sh`). The loss and the optimiser are in `objective.py`, the shape of the model in `model_shape.py`, what
slime cannot do in `refusals.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tau2rl.config import GrpoConfig, SftConfig, SlimeConfig
from tau2rl.errors import UserError
from tau2rl.slime.job import CURRICULUM, HOOKS, SlimeRun
from tau2rl.slime.layout import Layout, layout_of
from tau2rl.slime.model import shape_options
from tau2rl.slime.objective import objective, optimiser
from tau2rl.slime.options import Given, check, lookup, split
from tau2rl.slime.refusals import refuse

EVAL_NAME = "val"  # slime's curves of the selection tasks begin with `eval/val`
CONTEXT_SLACK = 256  # tokens; SGLang refuses a prompt and an answer that fill its context to the last one
HEALTH_INTERVAL = 30  # seconds between looks at an engine
NEVER = 1_000_000_000  # Megatron keeps the saves whose round is a multiple, and the last one

FIXED = (
    "--attention-dropout", "0.0",  # Megatron's default is 0.1
    "--hidden-dropout", "0.0",
    "--accumulate-allreduce-grads-in-fp32",
    "--attention-softmax-in-fp32",
    "--attention-backend", "flash",
    "--use-dynamic-batch-size",  # episodes differ tenfold in length
    "--balance-data",
)  # fmt: skip

# What our hooks cannot live with, or what would change what the settings say.
FORBIDDEN = {
    "--group-rm": "episodes are graded one by one, by tau2",
    "--partial-rollout": "a conversation that was cut off cannot go on in a fresh environment",
    "--use-opd": "turn-level advantages travel in the field that distillation uses",
    "--normalize-advantages": "advantages are made by the `algo` settings",
    "--disable-rewards-normalization": "advantages are made by the `algo` settings",
    "--disable-grpo-std-normalization": "advantages are made by the `algo` settings",
    "--custom-convert-samples-to-train-data-path": "advantages are made on the way that it replaces",
    "--custom-rm-path": "episodes are graded by tau2, and scored by `reward`",
    "--rm-type": "episodes are graded by tau2, and scored by `reward`",
    "--reward-key": "a sample has one score, by `reward`",
    "--eval-reward-key": "a look counts successes",
    "--eval-config": "`select` says which tasks are looked at",
    "--num-epoch": "`train.steps` says how long training goes on, and slime then passes over it",
    "--start-rollout-id": "a run goes on behind its own last save",
    "--finetune": "a run goes on with its own optimizer",
    "--no-load-optim": "a run goes on with its own optimizer",
    "--ckpt-step": "a run goes on behind its own last save",
    "--disable-rollout-global-dataset": "slime's rollouts and our choice of tasks need it",
    "--rollout-stop": "our chat codec says where a turn ends",
    "--rollout-stop-token-ids": "our chat codec says where a turn ends",
    "--rollout-top-p": "episodes to learn from are sampled from the whole distribution",
    "--rollout-top-k": "episodes to learn from are sampled from the whole distribution",
    "--apply-chat-template": "our chat codec makes the tokens",
    "--use-rollout-logprobs": "`algo.correction` says what becomes of the sampler's log-probabilities",
    "--wandb-key": "it would be shown to everyone who sees the run; WANDB_API_KEY is read from the environment",
}


def build_argv(config: SftConfig | GrpoConfig, run: SlimeRun) -> list[str]:
    """The options behind `python train.py`. Raises UserError for what slime cannot honour, and for a wrong `slime.extra`."""
    refuse(config)
    layout = layout_of(config)
    made = [
        *_machines(config.slime, layout),
        *_checkpoints(config, run),
        *(shape_options(run.shape) if run.shape else ()),
        *(_conversations(config, run) if isinstance(config, SftConfig) else _rollouts(config, run)),
        *(objective(config) if isinstance(config, GrpoConfig) else SFT_LOSS),
        *optimiser(config.train),
        *_memory(config.slime),
        *(_engines(config, run, layout) if isinstance(config, GrpoConfig) else ()),
        *_curves(config, run),
        *("--custom-config-path", str(run.custom_config)),
    ]
    argv = [*made, *_with_extra(FIXED, config.slime.extra, made)]
    check(argv)
    return argv


def _machines(slime: SlimeConfig, layout: Layout) -> list[str]:
    options = [
        *("--actor-num-nodes", f"{slime.train_nodes}", "--actor-num-gpus-per-node", f"{slime.train_gpus}"),
        *("--num-gpus-per-node", f"{slime.gpus_per_node}"),
    ]
    if layout.rollout:
        options += ["--rollout-num-gpus", f"{layout.rollout}", "--rollout-num-gpus-per-engine", f"{slime.gpus_per_engine}"]
    return [*options, "--colocate"] if layout.colocate else options


def _checkpoints(config: SftConfig | GrpoConfig, run: SlimeRun) -> list[str]:
    """A first start finds nothing at `--load` and takes `--ref-load`, at round 0; a resumed one finds its own last save."""
    start = config.model.init
    options = [
        *("--hf-checkpoint", start, "--ref-load", start, "--load", str(run.save), "--save", str(run.save)),
        *("--save-interval", f"{config.train.save_every}", "--save-hf", str(run.save_hf), "--seed", f"{config.seed}"),
    ]
    return [*options, "--save-retain-interval", f"{NEVER}"] if config.slime.saves == "last" else options


def _conversations(config: SftConfig, run: SlimeRun) -> list[str]:
    batch = config.train.batch_size
    return [
        *("--rollout-function-path", "slime.rollout.sft_rollout.generate_rollout", "--prompt-data", str(run.prompts)),
        *("--input-key", "messages", "--tool-key", "tools", "--loss-mask-type", config.slime.loss_mask),
        *("--rollout-shuffle", "--rollout-seed", f"{config.seed}", "--num-rollout", f"{config.train.steps}"),
        *("--rollout-batch-size", f"{batch}", "--n-samples-per-prompt", "1", "--global-batch-size", f"{batch}"),
    ]


SFT_LOSS = (
    "--loss-type", "sft_loss",
    "--calculate-per-token-loss",  # the mean over all assistant tokens of the step
    "--disable-compute-advantages-and-returns",
    "--debug-train-only",  # slime's word for "no engines"
)  # fmt: skip


def _rollouts(config: GrpoConfig, run: SlimeRun) -> list[str]:
    train, samples = config.train, config.rollout.num_samples
    options = [
        *("--prompt-data", str(run.prompts), "--input-key", "input", "--metadata-key", "metadata"),
        *("--data-source-path", f"{CURRICULUM}.CurriculumDataSource", "--rollout-shuffle", "--rollout-seed", f"{config.seed}"),
        *("--rollout-all-samples-process-path", f"{CURRICULUM}.learn", "--num-rollout", f"{train.steps}"),
        *("--rollout-batch-size", f"{train.tasks_per_step}", "--n-samples-per-prompt", f"{samples}"),
        *("--global-batch-size", f"{train.tasks_per_step * samples // train.num_minibatches}"),
        *(
            "--rollout-temperature",
            f"{config.sampling.temperature}",
            "--rollout-max-response-len",
            f"{config.sampling.max_tokens}",
        ),
        *("--rollout-max-context-len", f"{config.limits.context_tokens}"),
        *("--custom-generate-function-path", f"{HOOKS}.generate"),
        *("--custom-reward-post-process-path", f"{HOOKS}.post_process_rewards"),
        *("--custom-rollout-log-function-path", f"{HOOKS}.log_rollout"),
    ]
    if config.algo.max_resample_rounds:
        options += ["--dynamic-sampling-filter-path", f"{HOOKS}.keep_group"]
    if train.val_every:
        options += [
            *("--eval-interval", f"{train.val_every}", "--eval-prompt-data", EVAL_NAME, str(run.eval_prompts)),
            *("--n-samples-per-eval-prompt", f"{config.val.num_samples}"),
            *("--custom-eval-rollout-log-function-path", f"{HOOKS}.log_eval"),
        ]
        if config.val.temperature is not None:
            options += ["--eval-temperature", f"{config.val.temperature}"]
    return options


def _memory(slime: SlimeConfig) -> list[str]:
    options = [
        *("--tensor-model-parallel-size", f"{slime.tensor_parallel}"),
        *("--pipeline-model-parallel-size", f"{slime.pipeline_parallel}"),
        *("--context-parallel-size", f"{slime.context_parallel}"),
        *("--max-tokens-per-gpu", f"{slime.max_tokens_per_gpu}"),
    ]
    if slime.tensor_parallel > 1:
        options.append("--sequence-parallel")
    if slime.recompute:
        options += ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]
    if slime.log_probs_chunk > 0:
        options += ["--log-probs-chunk-size", f"{slime.log_probs_chunk}"]
    return options


def _engines(config: GrpoConfig, run: SlimeRun, layout: Layout) -> list[str]:
    slime = config.slime
    # slime admits this many times the number of engines, as it counts them: all serving GPUs by the size of a policy engine.
    counted = max(1, layout.rollout // slime.gpus_per_engine)
    # Of every model that is served; the customer's own is in --sglang-config. Caches are laid out for no more than is played.
    context = config.limits.context_tokens + CONTEXT_SLACK
    options = [
        *("--sglang-context-length", f"{min(context, run.shape.longest) if run.shape else context}"),
        *("--sglang-mem-fraction-static", f"{slime.mem_fraction}"),
        *("--sglang-server-concurrency", f"{math.ceil(config.rollout.concurrency / counted)}"),
    ]
    if layout.user:
        options += ["--sglang-config", str(run.sglang_config)]
    if slime.fault_tolerance:
        options += ["--use-fault-tolerance", "--rollout-health-check-interval", f"{HEALTH_INTERVAL}"]
        options += ["--rollout-health-check-timeout", f"{slime.health_seconds:g}"]
    return options


def _curves(config: SftConfig | GrpoConfig, run: SlimeRun) -> list[str]:
    options: list[str] = []
    if config.tracking.wandb != "off":
        options += [
            *("--use-wandb", "--wandb-mode", config.tracking.wandb, "--wandb-project", config.tracking.project),
            *("--wandb-group", f"{config.stage}-{config.name}", "--disable-wandb-random-suffix", "--wandb-dir", str(run.own)),
        ]
    return [*options, "--dump-details", str(run.dumps)] if config.slime.dump else options


def _with_extra(fixed: Sequence[str], extra: Mapping[str, Any], made: Sequence[str]) -> list[str]:
    """The fixed options and those of `slime.extra`, which win; one that a setting makes already is refused."""
    taken = {given.name for given in split(made)}
    own = {given.name: given for given in split(fixed)}
    for key, value in extra.items():
        name = f"--{key.lstrip('-').replace('_', '-')}"
        lookup(name)
        if name in FORBIDDEN:
            raise UserError(f"slime.extra cannot have `{name}`: {FORBIDDEN[name]}")
        if name in taken:
            raise UserError(
                f"slime.extra has `{name}`, which is made from the other settings", hint="`--dry-run` shows what from"
            )
        if value is False:
            own.pop(name, None)
        elif value is not None:
            own[name] = Given(name=name, values=_words(value))
    return [word for given in own.values() for word in (given.name, *given.values)]


def _words(value: Any) -> tuple[str, ...]:
    """A value of YAML as words of a command line: `true` is a switch, a list is several, a mapping is JSON."""
    match value:
        case True:
            return ()
        case dict():
            return (json.dumps(value),)
        case list():
            return tuple(str(item) for item in cast("list[Any]", value))
        case _:
            return (str(value),)
