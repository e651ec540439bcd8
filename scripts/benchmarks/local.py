"""Tokens/s of the local backend on a device: batched generation, then GRPO updates with LoRA, on random weights.

    python scripts/benchmarks/local.py --shape 0.6b --device cuda

Shapes: `tiny` (the laptop pipeline's), `0.6b` and `4b` (Qwen3's dimensions and vocabulary). Nothing is downloaded. Random
weights cost what trained ones cost; what they say is noise.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from tau2rl.config import AlgoConfig, GrpoTrainConfig, SamplingConfig, ShapeConfig
from tau2rl.config.training import LoraConfig
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.engine.proof import engine_of
from tau2rl.train.model import num_parameters, save_memory, with_lora
from tau2rl.train.tiny import create
from tau2rl.train.trainer import GRPOTrainer, ScoredTrajectory
from tau2rl.types import TrainingSample

QWEN3 = {"head_dim": 128, "copy_gain": 0.0}
SHAPES = {
    "tiny": (ShapeConfig(), 1024, {}),
    "0.6b": (ShapeConfig(hidden=1024, layers=28, heads=16, intermediate=3072, **QWEN3), 151936, {"kv_heads": 8}),
    "4b": (ShapeConfig(hidden=2560, layers=36, heads=32, intermediate=9728, **QWEN3), 151936, {"kv_heads": 8}),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--micro-tokens", type=int, default=8192)
    a = parser.parse_args()
    cuda = a.device.startswith("cuda")
    shape, vocabulary, more = SHAPES[a.shape]
    model = create(shape, vocab_size=vocabulary, seed=0, eos_token_id=0, pad_token_id=0, **more)
    model = model.to(a.device, torch.bfloat16 if cuda else torch.float32)  # bf16 is slow on most CPUs
    place = torch.cuda.get_device_name() if cuda else "the CPU"
    print(f"{a.shape}: {num_parameters(model) / 1e6:.1f} M parameters on {place}, torch {torch.__version__}")

    rng = random.Random(0)
    prefix = [rng.randrange(1, vocabulary) for _ in range(a.prompt_tokens // 2)]  # system prompt and tools, the same for all

    def requests(count: int, tokens: int) -> list[SampleRequest]:
        rest = a.prompt_tokens - len(prefix)
        return [
            SampleRequest(
                session=str(i),
                prompt=prefix + [rng.randrange(1, vocabulary) for _ in range(rest)],
                sampling=SamplingConfig(temperature=1.0),
                seed=i,
                max_tokens=tokens,
            )
            for i in range(count)
        ]

    engine_of(model)  # as a checkpoint that is opened
    TokenGenerator(model, slots=4).run(requests(2, 4))  # kernels are chosen at first use
    for count in (1, a.conversations):
        asked = requests(count, a.new_tokens)
        seconds, done = timed(cuda, lambda asked=asked: TokenGenerator(model, slots=a.conversations).run(asked))
        sampled = sum(len(c.token_ids) for c in done)
        size = f"{count * a.prompt_tokens} prompt + {sampled} new in {seconds:.2f} s"
        print(f"generation, {count} at once: {sampled / seconds:,.0f} new tokens/s ({size})")

    batch = [
        ScoredTrajectory(
            samples=(
                TrainingSample(
                    token_ids=(*r.prompt, *c.token_ids),
                    loss_mask=(*[0] * len(r.prompt), *[1] * len(c.token_ids)),
                    logprobs=(*[0.0] * len(r.prompt), *(c.logprobs or ())),
                    turn_spans=((len(r.prompt), len(r.prompt) + len(c.token_ids)),),
                ),
            ),
            advantages=(1.0 if i % 2 else -1.0,),
        )
        for i, (r, c) in enumerate(zip(asked, done, strict=True))
    ]
    if a.shape != "tiny":
        model = with_lora(model, LoraConfig(rank=32))
        save_memory(model)
    trainer = GRPOTrainer(
        model, AlgoConfig(), GrpoTrainConfig(lr=1e-5, steps=a.updates), max_tokens_per_microbatch=a.micro_tokens
    )
    for step in range(a.updates):
        seconds, update = timed(cuda, lambda: trainer.update(batch))
        assert update is not None
        print(
            f"GRPO update {step}: {update.tokens / seconds:,.0f} tokens/s ({update.tokens} in {seconds:.2f} s), "
            f"loss {update.loss:+.4f}, gradient norm {update.gradient_norm:.3g}, {update.mismatch}"
        )
    if cuda:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def timed(cuda: bool, work):
    """(seconds, result) of `work`, with the device's queue run dry on both sides."""
    if cuda:
        torch.cuda.synchronize()
    before = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - before, result


if __name__ == "__main__":
    main()
