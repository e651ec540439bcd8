"""Tokens/s of SFT, GRPO and generation on one CPU thread, ours against TRL: the same model, the same rows, the same batch.

    python scripts/benchmarks/training.py --rounds 5

TRL is in none of the project's extras. Without it the table has our rows alone; to compare:

    pip install "trl==1.16.*"

Conversations are demonstrations of synthesised tasks of the `mock` domain. A GRPO group is a task's prompt with continuations of
8 other tasks, which have little in common; or of 3, each several times, because a trained policy often does the same again (in
the laptop pipeline's GRPO, 69 % to 84 % of the tokens were in another attempt too).

Seconds are CPU seconds, medians of rounds in which the contenders take turns; tokens are those of the conversations, without
padding. TRL runs in several ways, of which the table has the fastest; `--details` prints them all. `computed`: positions that go
through the model, of those tokens; of generation, of the tokens that calls which keep nothing have to compute.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from training_data import NEW, OPTIM, TURNS, Contender, Data, demonstrations, heard, prepare

from tau2rl.config import AlgoConfig, GrpoTrainConfig, LocalTrainConfig, SamplingConfig, SftTrainConfig, ShapeConfig
from tau2rl.train.engine.forward import Work, collate, cut, score_tokens
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.engine.proof import engine_of
from tau2rl.train.model import load_model
from tau2rl.train.sft import train
from tau2rl.train.trainer import GRPOTrainer, ScoredTrajectory
from tau2rl.types import TrainingSample

SHAPES = {  # the laptop pipeline's, and a larger one
    "3x96": ShapeConfig(),
    "4x256": ShapeConfig(hidden=256, layers=4, heads=8, head_dim=32, intermediate=768),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="conversations of an SFT step")
    parser.add_argument("--tasks", type=int, default=8, help="groups of a GRPO update")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--details", action="store_true")
    a = parser.parse_args()
    quiet()
    theirs = find_spec("trl") is not None
    print("| model | what | tokens/s | TRL | faster | computed | padding | TRL's padding | peak MiB | TRL's |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        rows = demonstrations(Path(temporary) / "seed", 16 * a.tasks + a.batch)
        for name in a.shapes:
            data = prepare(rows, SHAPES[name], Path(temporary) / name, tasks=a.tasks, batch=a.batch)
            contenders = ours(data, a.micro_tokens)
            if theirs:
                from training_trl import contenders as of_trl

                contenders += of_trl(data, Path(temporary) / "trl")
            measure(contenders, a.rounds)
            for what in dict.fromkeys(c.what for c in contenders):
                print(line(name, [c for c in contenders if c.what == what]), flush=True)
            if a.details:
                for c in contenders:
                    print(f"{name} {c.what}, {c.who}, {c.how}: {c.speed:,.0f} tokens/s")
    if not theirs:
        print('\nTRL is not installed: `pip install "trl==1.16.*"` adds its columns')


def quiet() -> None:
    """Libraries have much to say."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from transformers.utils import logging as library_logging

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    if find_spec("datasets"):
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()


def ours(data: Data, max_tokens_per_microbatch: int) -> list[Contender]:
    """What `tau2rl sft`, `tau2rl grpo` and the local policy do."""
    model, reinforced, sampled = load_model(data.checkpoint), load_model(data.checkpoint), load_model(data.checkpoint)
    for each in (model, reinforced, sampled):
        engine_of(each)
    trainer = GRPOTrainer(
        reinforced, AlgoConfig(), GrpoTrainConfig(steps=1000, **OPTIM), max_tokens_per_microbatch=max_tokens_per_microbatch
    )
    step = SftTrainConfig(steps=1, batch_size=len(data.samples), **OPTIM)
    local = LocalTrainConfig(max_tokens_per_microbatch=max_tokens_per_microbatch)
    sampler = TokenGenerator(sampled, slots=len(data.prompts))

    def trained(what: str, run: Callable[[], Any], samples: Sequence[TrainingSample]) -> Contender:
        work = work_of(model, samples, max_tokens_per_microbatch)
        computed, tokens = work.computed / work.tokens, sum(len(s.token_ids) for s in samples)
        return Contender(what=what, who="ours", run=run, tokens=tokens, padding=work.padding_share, computed=computed)

    def sampled(what: str, turns: int) -> Contender:
        tokens, before = len(data.prompts) * NEW * turns, sampler.computed
        whole = talk(sampler, data.prompts, turns=turns)
        computed = (sampler.computed - before) / whole
        return Contender(
            what=what, who="ours", run=lambda: talk(sampler, data.prompts, turns=turns), tokens=tokens, computed=computed
        )

    def reinforced_by(batch: Sequence[ScoredTrajectory]) -> Callable[[], Any]:
        return lambda: trainer.update(batch)

    return [
        trained("SFT", lambda: train(model, [(row,) for row in data.samples], step, local), data.samples),
        *(trained(what, reinforced_by(batch), [t.samples[0] for t in batch]) for what, batch in data.groups.items()),
        sampled("generation", 1),
        sampled(f"generation, {TURNS} turns", TURNS),
    ]


def talk(generator: TokenGenerator, prompts: Sequence[list[int]], *, turns: int) -> int:
    """Every conversation through its turns, all side by side; how many tokens calls that keep nothing would compute."""
    generator.clear_cache()
    texts, rng, paid = [list(p) for p in prompts], random.Random(0), 0
    for turn in range(turns):
        asked = [
            SampleRequest(
                session=str(i),
                prompt=list(text),
                sampling=SamplingConfig(temperature=1.0),
                seed=turn * len(texts) + i,
                max_tokens=NEW,
            )
            for i, text in enumerate(texts)
        ]
        for text, done in zip(texts, generator.run(asked), strict=True):
            text += done.token_ids
            paid += len(text)
            text += heard(rng)
    return paid


def work_of(model: Any, samples: Sequence[TrainingSample], max_tokens_per_microbatch: int) -> Work:
    """Padding and sharing of a step."""
    total = Work()
    with torch.no_grad():
        for part in cut(model, samples, max_tokens=max_tokens_per_microbatch):
            total += score_tokens(model, collate([samples[i] for i in part])).work
    return total


def measure(contenders: Sequence[Contender], rounds: int) -> None:
    """Memory in a first round that is not timed, then each in turn, in another order every round."""
    for c in contenders:
        c.peak = peak_of(c.run)
    rng = random.Random(0)
    for _ in range(rounds):
        for c in rng.sample(list(contenders), len(contenders)):
            before = time.process_time()
            c.run()
            c.seconds.append(time.process_time() - before)


def peak_of(run: Callable[[], Any]) -> float:
    """The most MiB that the process grew by, looked at every 2 ms."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that growth can be seen
    before = most = resident()
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    over.set()
    watcher.join()
    return (most - before) / 2**20


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def line(shape: str, contenders: Sequence[Contender]) -> str:
    """A row of the table."""
    mine = next(c for c in contenders if c.who == "ours")
    other = max((c for c in contenders if c.who == "TRL"), key=lambda c: c.speed, default=None)

    def share(x: float | None) -> str:
        return "" if x is None else f"{100 * x:.0f} %"

    theirs = ["", "", "", ""]
    if other is not None:
        how = f" ({other.how})" if other.how else ""
        theirs = [f"{other.speed:,.0f}{how}", f"{mine.speed / other.speed:.1f}x", share(other.padding), f"{other.peak:.0f}"]
    cells = [shape, mine.what, f"{mine.speed:,.0f}", theirs[0], theirs[1], share(mine.computed), share(mine.padding), theirs[2]]
    return "| " + " | ".join([*cells, f"{mine.peak:.0f}", theirs[3]]) + " |"


if __name__ == "__main__":
    main()
