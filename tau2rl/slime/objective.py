"""The objective and the optimizer as slime is told them: what each setting of `algo:` and `train:` becomes there.

What slime does with them: `slime/backends/megatron_utils/loss.py` (losses, denominators), `slime/utils/ppo_utils.py` (clipping,
KL, the sequence ratio), `examples/train_infer_mismatch_helper/mis.py` (corrections of more than one token).
"""

from __future__ import annotations

from typing import Any

from tau2rl.config import AlgoConfig, GrpoConfig, TrainConfig
from tau2rl.reward.advantages import TURN_ESTIMATORS

KL = {"k1": "k1", "k2": "k2", "k3": "low_var_kl"}  # `low_var_kl` is k3 cut at 10, as the local backend's is
MODES = {"tis": "truncate", "mis": "mask", "clip": "clip"}
HOOKS = "tau2rl.slime.hooks"
ICEPOP = "slime.backends.megatron_utils.loss.icepop_function"  # w inside [low, high], else 0
MISMATCH = "examples.train_infer_mismatch_helper.mis.compute_mis_weights_with_cp"
NO_LIMIT = 1e30  # a weight is at most e^20


def objective(config: GrpoConfig) -> list[str]:
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
        options += ["--custom-pg-loss-reducer-function-path", f"{HOOKS}.constant_{algo.loss_scale}"]
    return options + _correction(algo)


def _correction(algo: AlgoConfig) -> list[str]:
    """Of a sampler that disagrees with the trainer."""
    if algo.correction == "none":
        return []
    if _beyond_tokens(algo):
        return ["--use-tis", "--custom-tis-function-path", MISMATCH]
    low = 0.0 if algo.correction == "tis" else algo.correction_low
    options = ["--use-tis", "--tis-clip", f"{algo.correction_high}", "--tis-clip-low", f"{low}"]
    return [*options, "--custom-tis-function-path", ICEPOP] if algo.correction == "mis" else options


def mismatch_settings(algo: AlgoConfig) -> dict[str, Any]:
    """What slime's helper for corrections of more than one token reads from `args`; empty where it is not used."""
    if algo.correction == "none" or not _beyond_tokens(algo):
        return {}
    return {
        "tis_mode": MODES[algo.correction],
        "tis_level": algo.correction_level,
        "tis_lower_bound": algo.correction_low,
        "tis_upper_bound": algo.correction_high,
        "tis_batch_normalize": False,
        # The veto is part of the helper's rejection, whose own bounds are put out of reach.
        "use_rs": algo.veto is not None,
        "rs_level": "token",
        "rs_lower_bound": 0.0,
        "rs_upper_bound": NO_LIMIT,
        "rs_veto_threshold": algo.veto,
    }


def _beyond_tokens(algo: AlgoConfig) -> bool:
    return algo.correction_level != "token" or algo.veto is not None


def optimizer(train: TrainConfig) -> list[str]:
    """AdamW and its schedule, in optimizer steps; Megatron spares norms and biases the weight decay by itself."""
    options = [
        *("--optimizer", "adam", "--lr", f"{train.lr}", "--lr-warmup-iters", f"{train.warmup_steps}"),
        *("--lr-decay-style", train.schedule, "--weight-decay", f"{train.weight_decay}"),
        *("--adam-beta1", f"{train.betas[0]}", "--adam-beta2", f"{train.betas[1]}", "--clip-grad", f"{train.max_grad_norm}"),
    ]
    if train.schedule == "cosine":
        options += ["--min-lr", f"{train.lr * train.min_lr_ratio:g}"]
    return options
