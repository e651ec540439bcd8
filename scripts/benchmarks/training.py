"""Tokens/s of SFT, GRPO and generation on one CPU thread, ours against TRL: the same model, the same rows, the same batch.

    python scripts/benchmarks/training.py --rounds 5

TRL is in none of the project's extras. Without it the table has our rows alone; to compare:

    pip install "trl==1.16.*"

Conversations are demonstrations of synthesised tasks of the `mock` domain. A GRPO group is a task's prompt and 8 different continuations of
it, taken from other tasks, so attempts share the prompt and nothing else. Seconds are CPU seconds, medians of rounds in which the
contenders take turns; tokens are those of the conversations, without padding. Each contender runs in several ways, and the table has
its fastest. `--details` prints them all.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch

from tau2rl.backends.local.data import collate
from tau2rl.backends.local.forward import Work, cut, score_tokens
from tau2rl.backends.local.generate import Generator, Request
from tau2rl.backends.local.grpo import GRPOSpec, GRPOTrainer, Judged
from tau2rl.backends.local.model import load, num_parameters
from tau2rl.backends.local.optim import Optimiser, OptimSpec
from tau2rl.backends.local.rows import encode_rows
from tau2rl.backends.local.sampling import Sampling
from tau2rl.backends.local.setup import create_tiny
from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import STAGES, ShapeConfig, build
from tau2rl.launch.dispatch import run_stage
from tau2rl.store.rows import read_file
from tau2rl.store.run import RunFolder
from tau2rl.types import TrainingSample

SHAPES = {  # the laptop pipeline's, and a larger one
    "3x96": ShapeConfig(),
    "4x256": ShapeConfig(hidden=256, layers=4, heads=8, head_dim=32, intermediate=768),
}
OPTIM = OptimSpec(lr=1e-4, total_steps=1000, warmup_steps=0)
GROUP, NEW, TURNS, ANSWER = 8, 32, 10, 16  # attempts; sampled tokens of a turn; turns, and what is heard between two of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What all contenders get."""

    checkpoint: Path
    rows: list[dict[str, Any]]  # as `messages` and `tools`
    samples: list[TrainingSample]  # the same rows as tokens
    groups: list[Judged]  # GROUP attempts a task, one behind the other
    prompts: list[list[int]]  # of the tasks of `groups`, each GROUP times


@dataclass(slots=True, kw_only=True)
class Contender:
    """One way of doing one thing."""

    what: str  # "SFT"
    who: str  # "ours", "TRL"
    how: str  # "4 x 4 by length"
    run: Callable[[], Any]
    tokens: int  # that a run is credited with
    padding: float | None = None  # share of the places
    computed: float | None = None  # positions through the model, as a share of the tokens
    seconds: list[float]
    peak: float = 0.0  # MiB on top of what the process held

    @property
    def speed(self) -> float:
        """Tokens a CPU second, median."""
        return self.tokens / statistics.median(self.seconds)


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
            contenders = [*ours(data, a.micro_tokens), *(trl(data, Path(temporary)) if theirs else [])]
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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging as library_logging

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    if find_spec("datasets"):
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()


def demonstrations(folder: Path, count: int) -> list[tuple[str, Any]]:
    """Conversations of the `mock` domain, as the laptop pipeline starts from them."""
    settings = {
        "output": str(folder),
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": count},
        "user": {"kind": "scripted"},
        "policy": {"kind": "gold"},
        "keep": "all",
        "slip": 0.3,
    }
    with RunFolder.open(RunFolder.create(folder, build(STAGES["seed"], settings), resume=True)) as opened:
        run_stage(opened, lambda _: None)
    return list(read_file(folder / "rows.jsonl"))


def prepare(rows: Sequence[tuple[str, Any]], shape: ShapeConfig, folder: Path, *, tasks: int, batch: int) -> Data:
    """A random model, rows for an SFT step, groups for an update."""
    create_tiny(iter(rows), shape, folder, seed=0)
    encoded = encode_rows(rows, load_tokenizer(str(folder)), max_tokens=1000)
    assert not encoded.dropped
    everything, rng = list(encoded.samples), random.Random(0)
    chosen = rng.sample(range(len(everything)), batch)
    tails = [s for i, s in enumerate(everything) if i >= tasks]
    rng.shuffle(tails)
    groups = [
        Judged(sample=spliced(everything[i], tails.pop()), advantages=(1.0 - 2.0 * (j % 2),))
        for i in range(tasks)
        for j in range(GROUP)
    ]
    prompts = [list(j.sample.token_ids[: j.sample.turn_spans[0][0]]) for j in groups]
    by_name = [{"messages": rows[i][1]["messages"], "tools": rows[i][1]["tools"]} for i in chosen]
    return Data(checkpoint=folder, rows=by_name, samples=[everything[i] for i in chosen], groups=groups, prompts=prompts)


def spliced(prompt: TrainingSample, tail: TrainingSample) -> TrainingSample:
    """The prompt of one conversation and what follows that of another."""
    at, cut_at = prompt.turn_spans[0][0], tail.turn_spans[0][0]
    ids = (*prompt.token_ids[:at], *tail.token_ids[cut_at:])
    spans = tuple((start - cut_at + at, end - cut_at + at) for start, end in tail.turn_spans)
    mask = (*[0] * at, *tail.loss_mask[cut_at:])
    return TrainingSample(token_ids=ids, loss_mask=mask, logprobs=tuple(-1.0 * m for m in mask), turn_spans=spans)


def ours(data: Data, micro_tokens: int) -> list[Contender]:
    """What `tau2rl sft`, `tau2rl grpo` and the local policy do."""
    model = load(data.checkpoint)
    optimiser = Optimiser(model, OPTIM)
    reinforced = load(data.checkpoint)
    trainer = GRPOTrainer(reinforced, GRPOSpec(optim=OPTIM, micro_tokens=micro_tokens))
    sampler = Generator(load(data.checkpoint), slots=len(data.prompts))
    attempts = [j.sample for j in data.groups]
    work = {"SFT": work_of(model, data.samples, micro_tokens), "GRPO": work_of(model, attempts, micro_tokens)}

    def fine_tune() -> None:
        model.train()
        optimiser.zero()
        count = sum(sum(s.loss_mask) for s in data.samples)
        for part in cut(model, data.samples, max_tokens=micro_tokens):
            (-score_tokens(model, collate([data.samples[i] for i in part])).logp.sum() / count).backward()
        optimiser.step()

    def contender(what: str, run: Callable[[], Any], tokens: int) -> Contender:
        w = work.get(what)
        padding, computed = (w.padding_share, w.computed / w.tokens) if w else (None, None)
        return Contender(what=what, who="ours", how="", run=run, tokens=tokens, padding=padding, computed=computed, seconds=[])

    size = len(data.prompts)
    return [
        contender("SFT", fine_tune, tokens_of(data.samples)),
        contender("GRPO", lambda: trainer.update(data.groups), tokens_of(attempts)),
        contender("generation", lambda: talk(sampler, data.prompts, turns=1), size * NEW),
        contender(f"generation, {TURNS} turns", lambda: talk(sampler, data.prompts, turns=TURNS), size * NEW * TURNS),
    ]


def talk(generator: Generator, prompts: Sequence[list[int]], *, turns: int) -> None:
    """Every conversation through its turns, all side by side."""
    generator.forget()
    texts, rng = [list(p) for p in prompts], random.Random(0)
    for turn in range(turns):
        asked = [
            Request(session=str(i), prompt=text, sampling=Sampling(), seed=turn * len(texts) + i, max_tokens=NEW)
            for i, text in enumerate(texts)
        ]
        for text, done in zip(texts, generator.run(asked), strict=True):
            text += [*done.token_ids, *heard(rng)]


def heard(rng: random.Random) -> list[int]:
    """What stands between two turns: an answer of the environment."""
    return [rng.randrange(10, 250) for _ in range(ANSWER)]


def work_of(model: Any, samples: Sequence[TrainingSample], micro_tokens: int) -> Work:
    """Padding and sharing of a step."""
    total = Work()
    with torch.no_grad():
        for part in cut(model, samples, max_tokens=micro_tokens):
            total += score_tokens(model, collate([samples[i] for i in part])).work
    return total


def tokens_of(samples: Sequence[TrainingSample]) -> int:
    """All of them, without padding."""
    return sum(len(s.token_ids) for s in samples)


def trl(data: Data, folder: Path) -> list[Contender]:
    """TRL's own trainers on the same rows."""
    from training_trl import contenders  # beside this file

    found: list[tuple[str, str, Callable[[], Any], int, float | None]] = contenders(data, folder)
    return [
        Contender(what=what, who="TRL", how=how, run=run, tokens=tokens, padding=padding, seconds=[])
        for what, how, run, tokens, padding in found
    ]


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
