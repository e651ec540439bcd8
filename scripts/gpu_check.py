"""The checks of `scripts/gpu_check.sh`: each in a process of its own, so that one that breaks leaves the others, then one table.

Shapes are those of Qwen3-0.6B and Qwen3-4B with random weights: speed and memory are a matter of shape alone. On a CPU both
are tiny, and the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tau2rl.config import AlgoConfig, GrpoTrainConfig, LocalTrainConfig, SamplingConfig, SftTrainConfig
from tau2rl.config.training import LoraConfig
from tau2rl.recipes.pipeline_report import pipeline_rows as table_of
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.engine.proof import engine_of
from tau2rl.train.model import num_parameters, save_memory, with_lora
from tau2rl.train.sft import SFTStep, train
from tau2rl.train.state import trained_weights
from tau2rl.train.trainer import GRPOTrainer, ScoredTrajectory
from tau2rl.types import TrainingSample

ROOT = Path(__file__).resolve().parents[1]
FULL_BYTES, BASE_BYTES, ADDED_BYTES = 18, 2, 16  # a weight: all trained in bfloat16; LoRA's base; LoRA's own, in 32 bits
Rows = list[tuple[str, str]]  # what was measured, and the value


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen3 from a config, and what is put through it: `SHAPES["0.6b"]`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 151936
    lora_rank: int = 0  # 0 = all weights are trained
    row_tokens: int = 4096
    microbatch_tokens: int = 16384
    prompt_tokens: int = 2048
    new_tokens: int = 128


SHAPES = {
    "0.6b": Shape(hidden=1024, intermediate=3072, layers=28, heads=16, kv_heads=8),
    "4b": Shape(hidden=2560, intermediate=9728, layers=36, heads=32, kv_heads=8, lora_rank=32),
}
TINY = {"hidden": 32, "intermediate": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "vocab": 512}
TINY_ROWS = {"row_tokens": 64, "microbatch_tokens": 256, "prompt_tokens": 32, "new_tokens": 8}
ROWS, GROUPS, GROUP_SIZE = 8, 4, 8  # conversations of an SFT step; groups of a GRPO step, and their attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it runs, and how large: `Machine(device="cuda")`."""

    device: str

    @property
    def tiny(self) -> bool:
        """On a CPU only the script itself is checked."""
        return self.device == "cpu"

    def model(self, shape: Shape) -> nn.Module:
        """Random weights in bfloat16, the same each time; LoRA comes with recomputed activations."""
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim, max_position_embeddings=40960, tie_word_embeddings=True,
        )  # fmt: skip
        with torch.device(self.device):
            model: Any = Qwen3ForCausalLM(config)
        model = model.to(torch.bfloat16)
        engine_of(model)  # as a checkpoint that is opened
        if shape.lora_rank:
            model = with_lora(model, LoraConfig(rank=shape.lora_rank))
            save_memory(model)
        return model

    def shape(self, name: str) -> Shape:
        """One of SHAPES, made tiny on a CPU."""
        return replace(SHAPES[name], **TINY, **TINY_ROWS) if self.tiny else SHAPES[name]

    def peak_gb(self) -> float | None:
        """The most that was allocated on the device since its start; None on a CPU."""
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated() / 1e9


def tokens(shape: Shape, count: int, seed: int) -> tuple[int, ...]:
    """Random ids."""
    rng = random.Random(seed)
    return tuple(rng.randrange(shape.vocab) for _ in range(count))


def sft_rows(shape: Shape) -> list[TrainingSample]:
    """Conversations that begin with the same half, a quarter of each said by the assistant."""
    head, rest = tokens(shape, shape.row_tokens // 2, 0), shape.row_tokens // 2
    mask = (*[0] * (shape.row_tokens - rest // 2), *[1] * (rest // 2))
    return [
        TrainingSample(token_ids=(*head, *tokens(shape, rest, 1 + i)), loss_mask=mask, logprobs=None, turn_spans=())
        for i in range(ROWS)
    ]


def memory(machine: Machine, model: nn.Module, shape: Shape) -> Rows:
    """The peak, beside what docs/local.md says of weights, gradients and optimizer; activations are on top of that."""
    trained, every = num_parameters(model, trainable=True), num_parameters(model)
    known = trained * ADDED_BYTES + every * BASE_BYTES if shape.lora_rank else every * FULL_BYTES
    peak = machine.peak_gb()
    said = "not measured on a CPU" if peak is None else f"{peak:.1f} GB"
    return [
        ("weights, of them trained", f"{every:,}, {trained:,}"),
        ("peak memory (by docs/local.md)", f"{said} ({known / 1e9:.1f} GB)"),
    ]


def check_sft(machine: Machine, name: str) -> Rows:
    """Four steps; the first, in which kernels are chosen, is not counted."""
    shape, steps = machine.shape(name), list[SFTStep]()
    model = machine.model(shape)
    config = SftTrainConfig(lr=1e-5, steps=4, warmup_steps=0, batch_size=ROWS, save_every=100)
    local = LocalTrainConfig(max_tokens_per_microbatch=shape.microbatch_tokens)
    train(model, [(row,) for row in sft_rows(shape)], config, local, on_step=steps.append)
    rate = sum(s.tokens for s in steps[1:]) / sum(s.seconds for s in steps[1:])
    losses = ", ".join(f"{s.loss:.3f}" for s in steps)
    return [("tokens a second", f"{rate:,.0f}"), ("losses", losses), *memory(machine, model, shape)]


def sampled(model: nn.Module, shape: Shape) -> tuple[list[ScoredTrajectory], float]:
    """Groups of attempts at random prompts, with advantages in turns good and bad, and the seconds that sampling took."""
    sampling = SamplingConfig(temperature=1.0, max_tokens=shape.new_tokens)
    asks = [
        SampleRequest(session=f"{group}/{i}", prompt=list(tokens(shape, shape.prompt_tokens, group)), sampling=sampling,
                seed=i, max_tokens=shape.new_tokens)
        for group in range(GROUPS) for i in range(GROUP_SIZE)
    ]  # fmt: skip
    model.eval()
    began, found = time.monotonic(), list[ScoredTrajectory]()
    answers = TokenGenerator(model, slots=len(asks)).run(asks)
    seconds = time.monotonic() - began
    for i, (ask, done) in enumerate(zip(asks, answers, strict=True)):
        size, new = len(ask.prompt), len(done.token_ids)
        row = TrainingSample(
            token_ids=(*ask.prompt, *done.token_ids), loss_mask=(*[0] * size, *[1] * new),
            logprobs=(*[0.0] * size, *(done.logprobs or ())), turn_spans=((size, size + new),),
        )  # fmt: skip
        found.append(ScoredTrajectory(samples=(row,), advantages=((-1.0) ** i,)))
    return found, seconds


def check_grpo(machine: Machine, name: str) -> Rows:
    """Two rounds of sampling and one update each; the second is counted."""
    shape, model = machine.shape(name), machine.model(machine.shape(name))
    settings = GrpoTrainConfig(lr=1e-6, steps=2, warmup_steps=0)
    trainer = GRPOTrainer(model, AlgoConfig(), settings, max_tokens_per_microbatch=shape.microbatch_tokens)
    _, rows = (grpo_round(model, trainer, shape) for _ in range(2))
    return [*rows, *memory(machine, model, shape)]


def grpo_round(model: nn.Module, trainer: GRPOTrainer, shape: Shape) -> Rows:
    """One round: how fast it sampled and trained, and how far sampler and trainer are apart."""
    batch, seconds = sampled(model, shape)
    began = time.monotonic()
    update = trainer.update(batch)
    took = time.monotonic() - began
    assert update is not None  # the advantages are not all 0
    apart, new = update.mismatch, sum(t.num_sampled for t in batch)
    return [
        ("sampled tokens a second", f"{new / seconds:,.0f}"),
        ("trained tokens a second", f"{update.tokens / took:,.0f}"),
        ("sampler against trainer, mean and max", f"{apart.mean_abs:.2e}, {apart.max_abs:.2e}"),
    ]


def check_resume(machine: Machine, name: str) -> Rows:
    """Six steps at a stretch, and six that were interrupted behind the third: how far apart the weights are."""
    shape, rows = machine.shape(name), sft_rows(machine.shape(name))
    local = LocalTrainConfig(max_tokens_per_microbatch=shape.microbatch_tokens)
    config = SftTrainConfig(lr=1e-4, steps=6, warmup_steps=0, batch_size=ROWS // 2, save_every=3)

    def stop(step: SFTStep) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    def run(folder: str | None, on_step: Callable[[SFTStep], None] = lambda _: None) -> dict[str, torch.Tensor]:
        model = machine.model(shape)
        try:
            train(
                model, [(row,) for row in rows], config, local, folder=None if folder is None else Path(folder), on_step=on_step
            )
        except KeyboardInterrupt:
            return {}
        return trained_weights(model)

    begun, whole = trained_weights(machine.model(shape)), run(None)
    with tempfile.TemporaryDirectory() as folder:
        run(folder, stop)
        resumed = run(folder)
    moved = distance(whole, begun)
    apart = distance(whole, resumed)
    words = "the same to the last bit" if apart == 0 else f"{apart / moved:.1e} of the way that they moved"
    return [("resumed against uninterrupted", words)]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two models' weights, Euclidean."""
    return math.sqrt(sum(float((one[name].float() - other[name].float()).square().sum()) for name in one))


def check_chain(machine: Machine, seconds: float) -> Rows:
    """The laptop chain with `local.device` on one seed; tiny: the smoke run of it."""
    with tempfile.TemporaryDirectory() as folder:
        out, device = Path(folder) / "chain", f"local.device={machine.device}"
        sets = [f"steps.{step}.settings.{device}" for step in ("sft", "rft-filter", "rft", "grpo")]
        words = [f"--set={one}" for one in (*sets, f"evaluation.settings.{device}")]
        words += ["--limit", "1"] if machine.tiny else []
        line = ["-m", "tau2rl", "run", "-c", "configs/laptop/pipeline.yaml", "--inline", "--seed", "0", "--output", str(out)]
        done = subprocess.run([sys.executable, *line, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-400:]}")
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    solved = [(f"pass@1 of {model}", share) for model, share, *_ in table_of(report)[1:] if share]
    return [*solved, ("chain of hashes holds", str(report["chain"]["holds"]))]


def check_tests(machine: Machine, seconds: float) -> Rows:
    """`pytest -m gpu`: the last line of what it says."""
    line = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(done.stdout.strip()[-400:])
    return [("pytest -m gpu", done.stdout.strip().splitlines()[-1])]


CHECKS: dict[str, Callable[[Machine, float], Rows]] = {
    "pytest": check_tests,
    "sft-0.6b": lambda machine, _: check_sft(machine, "0.6b"),
    "grpo-0.6b": lambda machine, _: check_grpo(machine, "0.6b"),
    "sft-4b": lambda machine, _: check_sft(machine, "4b"),
    "grpo-4b": lambda machine, _: check_grpo(machine, "4b"),
    "resume-0.6b": lambda machine, _: check_resume(machine, "0.6b"),
    "chain": check_chain,
}


def in_process(name: str, device: str, seconds: float) -> Rows:
    """A check in a process of its own; what broke it where it did not end well."""
    line = [sys.executable, __file__, "--device", device, "--one", name, "--minutes", f"{seconds / 60}"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [("FAILED", f"not done in {seconds:.0f} s")]
    if done.returncode:
        return [("FAILED", next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")[:300])]
    return [(what, value) for what, value in json.loads(done.stdout.splitlines()[-1])]


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks within the minutes, print a row for each measurement; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: tiny shapes, to check this script")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all checks; one that would come later is left out")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="these checks")
    parser.add_argument("--one", choices=list(CHECKS), help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.device != "cpu" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device\n\nhint: `--device cpu` checks this script", file=sys.stderr)
        return 2
    if asked.one:
        print(json.dumps(CHECKS[asked.one](Machine(device=asked.device), asked.minutes * 60)))
        return 0
    card = torch.cuda.get_device_name() if asked.device != "cpu" else f"CPU, {os.cpu_count()} cores, tiny shapes"
    print(f"{card}; torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    began, failed = time.monotonic(), False
    for name in asked.only:
        left, start = asked.minutes * 60 - (time.monotonic() - began), time.monotonic()
        rows = in_process(name, asked.device, left) if left > 5 else [("FAILED", "no time was left")]
        failed |= any(what == "FAILED" for what, _ in rows)
        for what, value in (*rows, ("seconds, start included", f"{time.monotonic() - start:.0f}")):
            print(f"{name:12} {what:42} {value}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
