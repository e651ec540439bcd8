"""The command line of slime's `train.py`, whole: what each setting becomes there. Pure; read it in a diff before paying for GPUs.

`FIXED` never depends on the settings. Numbers without a source beside them are those of slime's own script for this size
(`scripts/run-qwen3-4B.sh`). What slime does with the options of the loss: `slime/backends/megatron_utils/loss.py` (losses,
denominators), `slime/utils/ppo_utils.py` (clipping, KL, the sequence ratio), `examples/train_infer_mismatch_helper/mis.py`
(corrections of more than one token). The shape of the model is in `model.py`.
"""

from __future__ import annotations

import math

from tau2rl.backend import TrainingConfig
from tau2rl.config import AlgoConfig, GrpoConfig, SftConfig, SlimeConfig, TrainConfig
from tau2rl.config.kinds import TURN_ESTIMATORS
from tau2rl.slime.layout import ClusterLayout, layout_of
from tau2rl.slime.model import shape_options
from tau2rl.slime.options import check, with_extra
from tau2rl.slime.preflight import validate
from tau2rl.slime.run_context import MISMATCH, SlimeRun, needs_mismatch_helper

HOOKS = "tau2rl.slime.hooks"
KL = {"k1": "k1", "k2": "k2", "k3": "low_var_kl"}  # `low_var_kl` is k3 cut at 10, as the local backend's is
ICEPOP = "slime.backends.megatron_utils.loss.icepop_function"  # w inside [low, high], else 0
DATA_SOURCE = "tau2rl.slime.data_source"
EVAL_NAME = "val"  # slime's curves of validation begin with `eval/val`
CONTEXT_SLACK = 256  # tokens; SGLang refuses a prompt and an answer that fill its context to the last one
HEALTH_INTERVAL = 30  # seconds between health checks of an engine
NEVER = 1_000_000_000  # Megatron keeps the saves whose number is a multiple, and the last one

FIXED = (
    "--attention-dropout", "0.0",  # Megatron's default is 0.1
    "--hidden-dropout", "0.0",
    "--accumulate-allreduce-grads-in-fp32",
    "--attention-softmax-in-fp32",
    "--attention-backend", "flash",
    "--use-dynamic-batch-size",  # episodes differ tenfold in length
    "--balance-data",
)  # fmt: skip


def build_argv(config: TrainingConfig, run: SlimeRun) -> list[str]:
    """The options behind `python train.py`. Raises UserError for what slime cannot honor, and for a wrong `slime.extra`."""
    validate(config)
    layout = layout_of(config)
    made = [
        *_machines(config.slime, layout),
        *_checkpoints(config, run),
        *(shape_options(run.shape) if run.shape else ()),
        *(_conversations(config, run) if isinstance(config, SftConfig) else _rollouts(config, run)),
        *(_objective(config) if isinstance(config, GrpoConfig) else SFT_LOSS),
        *_optimizer(config.train),
        *_memory(config.slime),
        *(_engines(config, run, layout) if isinstance(config, GrpoConfig) else ()),
        *_curves(config, run),
        *("--custom-config-path", str(run.custom_config)),
    ]
    defaults = (*FIXED, *(_routing(layout) if isinstance(config, GrpoConfig) else ()))
    argv = [*made, *with_extra(defaults, config.slime.extra, made)]
    check(argv)
    return argv


def _machines(slime: SlimeConfig, layout: ClusterLayout) -> list[str]:
    options = [
        *("--actor-num-nodes", f"{slime.train_nodes}", "--actor-num-gpus-per-node", f"{slime.train_gpus}"),
        *("--num-gpus-per-node", f"{slime.gpus_per_node}"),
    ]
    if layout.rollout:
        options += ["--rollout-num-gpus", f"{layout.rollout}", "--rollout-num-gpus-per-engine", f"{slime.gpus_per_engine}"]
    return [*options, "--colocate"] if layout.colocate else options


def _checkpoints(config: TrainingConfig, run: SlimeRun) -> list[str]:
    """A first start finds nothing at `--load` and takes `--ref-load`, at rollout 0; a resumed one finds its own last save."""
    start = config.model.init
    options = [
        *("--hf-checkpoint", start, "--ref-load", start, "--load", str(run.save), "--save", str(run.save)),
        *("--save-interval", f"{config.train.save_every}", "--save-hf", str(run.save_hf), "--seed", f"{config.seed}"),
        "--override-opt_param-scheduler",  # Megatron goes on with a saved schedule, but not with a longer one (`train.steps`)
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
        *("--data-source-path", f"{DATA_SOURCE}.TaskDataSource", "--rollout-seed", f"{config.seed}"),
        *("--rollout-all-samples-process-path", f"{DATA_SOURCE}.observe", "--num-rollout", f"{train.steps}"),
        *("--rollout-batch-size", f"{train.tasks_per_step}", "--n-samples-per-prompt", f"{samples}"),
        *("--global-batch-size", f"{train.tasks_per_step * samples // train.num_minibatches}"),
        *("--rollout-temperature", f"{config.sampling.temperature}"),
        *("--rollout-max-response-len", f"{config.sampling.max_tokens}"),
        *("--rollout-max-context-len", f"{config.limits.context_tokens}"),
        *("--custom-generate-function-path", f"{HOOKS}.generate"),
        *("--custom-reward-post-process-path", f"{HOOKS}.post_process_rewards"),
        *("--custom-rollout-log-function-path", f"{HOOKS}.log_rollout"),
        *("--rollout-data-postprocess-path", f"{HOOKS}.count_trained"),
        *("--custom-megatron-before-train-step-hook-path", f"{HOOKS}.before_train_step"),
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


def _objective(config: GrpoConfig) -> list[str]:
    """The policy-gradient loss. Advantages are made by our hooks, before slime sees them."""
    algo = config.algo
    options = [
        *("--advantage-estimator", "gspo" if algo.ratio == "sequence" else "grpo"),
        *("--eps-clip", f"{algo.eps_low}", "--eps-clip-high", f"{algo.eps_high}"),
        *("--entropy-coef", f"{algo.entropy_coef}"),
    ]
    if algo.estimator in TURN_ESTIMATORS:
        options += ["--custom-advantage-function-path", f"{HOOKS}.turn_advantages"]
    if algo.dual_clip is not None:
        options += ["--eps-clip-c", f"{algo.dual_clip}"]
    if algo.kl_coef:
        options += ["--use-kl-loss", "--kl-loss-coef", f"{algo.kl_coef}", "--kl-loss-type", KL[algo.kl]]
    if algo.loss_aggregation == "token-mean":
        options.append("--calculate-per-token-loss")
    elif algo.loss_aggregation == "constant":
        options += ["--custom-pg-loss-reducer-function-path", f"{HOOKS}.scaled_sum"]
    return options + _correction(algo)


def _correction(algo: AlgoConfig) -> list[str]:
    """Of a sampler that disagrees with the trainer."""
    if algo.correction == "none":
        return []
    if needs_mismatch_helper(algo):
        return ["--use-tis", "--custom-tis-function-path", MISMATCH]
    low = 0.0 if algo.correction == "tis" else algo.correction_low
    options = ["--use-tis", "--tis-clip", f"{algo.correction_high}", "--tis-clip-low", f"{low}"]
    return [*options, "--custom-tis-function-path", ICEPOP] if algo.correction == "mis" else options


def _optimizer(train: TrainConfig) -> list[str]:
    """AdamW and its schedule, in optimizer steps; Megatron spares norms and biases the weight decay by itself."""
    options = [
        *("--optimizer", "adam", "--lr", f"{train.lr}", "--lr-warmup-iters", f"{train.warmup_steps}"),
        *("--lr-decay-style", train.schedule, "--weight-decay", f"{train.weight_decay}"),
        *("--adam-beta1", f"{train.betas[0]}", "--adam-beta2", f"{train.betas[1]}", "--clip-grad", f"{train.max_grad_norm}"),
    ]
    if train.schedule == "cosine":
        options += ["--min-lr", f"{train.lr * train.min_lr_ratio:g}"]
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


def _engines(config: GrpoConfig, run: SlimeRun, layout: ClusterLayout) -> list[str]:
    slime = config.slime
    # slime admits this many times the number of engines, as it counts them: all serving GPUs by the size of a policy engine.
    counted = max(1, layout.rollout // slime.gpus_per_engine)
    # Of every model that is served; the user simulator's own is in --sglang-config. Caches hold no more than is played.
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


def _routing(layout: ClusterLayout) -> tuple[str, ...]:
    """`manual` keeps a conversation, by its routing key, on the engine that has its prefix cached; `cache_aware` is slime's.

    All routers of a job have one policy. `manual` sends what has no key, as the user simulator's requests, to any engine: where
    the job serves several engines of the user simulator too, `cache_aware` stays.
    """
    if layout.policy_engines < 2 or layout.user_engines > 1:
        return ()
    return ("--router-policy", "manual", "--router-assignment-mode", "min_load")


def _curves(config: TrainingConfig, run: SlimeRun) -> list[str]:
    options: list[str] = []
    if config.tracking.wandb != "off":
        options += [
            *("--use-wandb", "--wandb-mode", config.tracking.wandb, "--wandb-project", config.tracking.project),
            *("--wandb-group", f"{config.stage}-{config.name}", "--disable-wandb-random-suffix", "--wandb-dir", str(run.own)),
        ]
    return [*options, "--dump-details", str(run.dumps)] if config.slime.dump else options
