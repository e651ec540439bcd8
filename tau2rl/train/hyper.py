"""From a config to the hyperparameters of the local trainer: the whole of what a knob of `train:` or `algo:` does here."""

from __future__ import annotations

from torch import nn

from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import AlgoConfig, ChatConfig, GrpoConfig, LocalConfig, SamplingConfig, SftConfig, TrainConfig
from tau2rl.train.generate import Sampling
from tau2rl.train.losses import LossSpec
from tau2rl.train.optim import OptimSpec
from tau2rl.train.policy import LocalPolicy
from tau2rl.train.sft import SFTSpec
from tau2rl.train.trainer import GRPOSpec
from tau2rl.types import ChatCodec


def sft_spec(config: SftConfig) -> SFTSpec:
    """How `tau2rl sft` trains here.

    >>> sft_spec(SftConfig()).optim.lr
    1e-05
    """
    train = config.train
    return SFTSpec(
        optim=optim_spec(train, steps=train.steps),
        batch_size=train.batch_size,
        max_tokens_per_microbatch=config.local.max_tokens_per_microbatch,
        seed=config.seed,
        val_every=train.val_every,
        patience=train.early_stopping_patience,
        save_every=train.save_every,
    )


def grpo_spec(config: GrpoConfig) -> GRPOSpec:
    """How `tau2rl grpo` updates here."""
    updates = config.train.num_minibatches
    return GRPOSpec(
        optim=optim_spec(config.train, steps=config.train.steps * updates),
        loss=loss_spec(config.algo),
        temperature=config.sampling.temperature,
        updates=updates,
        max_tokens_per_microbatch=config.local.max_tokens_per_microbatch,
    )


def optim_spec(train: TrainConfig, *, steps: int) -> OptimSpec:
    """AdamW and its schedule over `steps` optimizer steps."""
    return OptimSpec(
        lr=train.lr,
        total_steps=steps,
        warmup_steps=train.warmup_steps,
        schedule=train.schedule,
        min_share=train.min_lr_ratio,
        betas=train.betas,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
    )


def loss_spec(algo: AlgoConfig) -> LossSpec:
    """The policy-gradient loss."""
    return LossSpec(
        ratio=algo.ratio,
        eps_low=algo.eps_low,
        eps_high=algo.eps_high,
        dual_clip=algo.dual_clip,
        loss_aggregation=algo.loss_aggregation,
        loss_scale=algo.loss_scale,
        kl_coef=algo.kl_coef,
        kl=algo.kl,
        entropy_coef=algo.entropy_coef,
        correction=algo.correction,
        level=algo.correction_level,
        correction_low=algo.correction_low,
        correction_high=algo.correction_high,
        veto=algo.veto,
    )


def sampling_of(sampling: SamplingConfig, codec: ChatCodec) -> Sampling:
    """How a turn is drawn: by the config, up to the ends of the chat protocol."""
    return Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=codec.stop_token_ids,
        stop=codec.stop,
    )


def policy_of(model: nn.Module, sampling: SamplingConfig, local: LocalConfig, chat: ChatConfig, codec: ChatCodec) -> LocalPolicy:
    """A model as a policy; it is started by `async with`."""
    decode = load_tokenizer(chat.tokenizer).decode if codec.stop and chat.tokenizer else None  # for stop strings alone
    return LocalPolicy(
        model, sampling_of(sampling, codec), max_tokens=sampling.max_tokens, slots=local.kv_cache_slots, decode=decode
    )
