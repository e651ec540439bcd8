"""How close an evaluation comes to its bound: 64 episodes at concurrency 32 against a stub SGLang server with 100 ms latency.

    python scripts/benchmarks/rollouts.py [DOMAIN] [TURNS] [TOKENIZER]

All episodes have TURNS turns, so that the bound can be reached. TOKENIZER is a checkpoint's directory; `bpe` (default) is one
that is trained on the policies first, about 4 characters a token; `bytes` makes prompts four times as long, which are then
what both sides spend their time on.
The bound is the longest episode's latency, or all latency divided by the concurrency, whichever is larger. The server runs in
a process of its own. `busy` is CPU time / wall time of this process, `late` how long its event loop kept others waiting at
most. Timings of a busy machine mean little: look at the ratio on an idle one.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rollouts_400 import make_tokenizer

ROOT = Path(__file__).parents[2]
LATENCY, EPISODES, CONCURRENCY, TASKS = 0.1, 64, 32, 4
SERVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig
from tau2rl.types import Say
from tests.stubs.sglang import SGLangStub
turn = make_codec(ChatConfig(protocol="native", tokenizer=sys.argv[1])).write((Say(text="One moment, please."),))
with SGLangStub(answer=lambda ids, params: turn, latency={LATENCY}, context=10**7) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def main(domain: str = "mock", turns: str = "10", tokenizer: str = "bpe") -> None:
    """Run it once and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), domain, turns, str(make_tokenizer(Path(folder), (domain,))) if tokenizer == "bpe" else tokenizer)


def measure(folder: Path, domain: str, turns: str, tokenizer: str) -> None:
    """Play once for warmth, then for the clock."""
    from tau2rl.config import EvalConfig, load_config
    from tau2rl.recipes import eval as stage
    from tau2rl.runs.folder import RunFolder

    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, tokenizer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    settings = [
        *(f"tasks.domains=[{domain}]", "tasks.split=base", "tasks.exclude_quarantined=true", f"policy.url={url}"),
        *(
            f"chat.tokenizer={tokenizer}",
            "user.kind=scripted",
            f"user.max_stalled_turns={turns}",
            "limits.context_tokens=1000000",
        ),
        f"rollout.concurrency={CONCURRENCY}",
    ]
    late = wall = cpu = 0.0

    async def watched(*arguments: Any, **options: Any) -> None:
        nonlocal late, wall, cpu

        async def watch() -> None:
            nonlocal late
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                late = max(late, time.perf_counter() - before - 0.005)

        watching = asyncio.create_task(watch())
        late, wall, cpu = 0.0, time.perf_counter(), time.process_time()
        await play(*arguments, **options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        watching.cancel()

    play, stage.play = stage.play, watched
    once = load_config(EvalConfig, None, [*settings, "tasks.limit=16", "rollout.num_samples=1", "seed=1"])
    with RunFolder.open(RunFolder.create(folder / "warm", once, resume=False)) as run:
        stage.run(once, run, lambda event: None)
        long = [r.attempt.task.task_id for r in run.records() if len(r.episode.turns) == int(turns)]
    ids = yaml.safe_dump(long[:TASKS], default_flow_style=True).strip()
    config = load_config(
        EvalConfig, None, [*settings, f"tasks.ids={ids}", f"rollout.num_samples={EPISODES // len(long[:TASKS])}"]
    )
    with RunFolder.open(RunFolder.create(folder / "measured", config, resume=False)) as run:
        stage.run(config, run, lambda event: None)
        turns_of = [len(record.episode.turns) for record in run.records()]
    process.kill()
    bound = LATENCY * max(max(turns_of), sum(turns_of) / CONCURRENCY)
    print("| domain | episodes | turns | wall s | against the bound | busy | late ms |\n|" + " --- |" * 7)
    cells = (
        domain,
        len(turns_of),
        sum(turns_of),
        f"{wall:.2f}",
        f"{wall / bound:.2f}x",
        f"{cpu / wall:.0%}",
        f"{late * 1000:.0f}",
    )
    print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
