"""The front door: evaluate a policy, play one episode, list tasks, from Python. `tau2rl/__init__.py` says what is public.

`evaluate` is `tau2rl eval`: the same settings, loop, retries, grading and report. It differs in what it may be given (objects
where the command has names) and in what is left: no run folder, unless `output` asks for one.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from tau2rl import chat, plugins as references, settings
from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import (
    BudgetConfig,
    ChatConfig,
    EvalConfig,
    LimitsConfig,
    PolicyConfig,
    RewardConfig,
    Section,
    TasksConfig,
    UserConfig,
    build,
    dump,
)
from tau2rl.config.kinds import POLICIES
from tau2rl.env import tau2_env
from tau2rl.env.tasks import select
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.protocols import ChatCodec, Env, Policy
from tau2rl.recipes import eval as recipe
from tau2rl.recipes.agents import open_given
from tau2rl.recipes.play import play
from tau2rl.rollouts.episode import run_episode
from tau2rl.rollouts.runner import PolicyFor
from tau2rl.runs.claim import claimed
from tau2rl.runs.folder import RunFolder, run_path
from tau2rl.runs.prices import refuse_unpriced
from tau2rl.runs.progress import Progress
from tau2rl.runs.timing import usage_kept
from tau2rl.types import Attempt, Episode, EpisodeRecord, TaskRef

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """What an evaluation found: `EvalReport(report={"overall": {"pass@1": {...}}, ...}, episodes=(...,), failures=())`."""

    report: Mapping[str, Any]  # as `report.json` has it
    episodes: tuple[EpisodeRecord, ...]  # those that are evidence, in the order in which they ended
    failures: tuple[EpisodeRecord, ...]  # FAILED: environment or infrastructure, never a zero

    @property
    def pass_at_1(self) -> float | None:
        """Share of the attempts that solved their task, over tasks; None where attempts are missing (`reason` says why)."""
        return self.estimate("pass@1")["value"]

    @property
    def pass_at_1_ci95(self) -> tuple[float, float] | None:
        """Its 95% interval."""
        interval = self.estimate("pass@1")["ci95"]
        return tuple(interval) if interval else None

    @property
    def complete(self) -> bool:
        """Whether every planned attempt has a valid episode."""
        return not self.report["incomplete"]

    @property
    def reason(self) -> str:
        """Why there are no numbers; "" where there are."""
        return self.report["reason"] or ""

    @property
    def stopped_at(self) -> str:
        """The cap of the budget that ended it: "max_usd", "max_tokens" or "max_hours"; "" where none did."""
        budget: Mapping[str, Any] = self.report.get("budget") or {}
        return budget.get("stopped") or ""

    @property
    def floors(self) -> Mapping[str, Mapping[str, float | None]]:
        """Domain -> `do_nothing`, `always_transfer` -> what an agent that never helps scores on these very tasks."""
        return self.report["floor_by_domain"]

    def estimate(self, measure: str, *, domain: str | None = None) -> Mapping[str, Any]:
        """`{"value", "ci95", ...}` of `pass@k` or `pass^k`, over all tasks or those of a domain. Raises KeyError."""
        section = self.report["by_domain"][domain] if domain else self.report["overall"]
        return section[measure]

    def to_dict(self) -> dict[str, Any]:
        """The report as `report.json` has it."""
        return dict(self.report)


async def evaluate(
    *,
    policy: Policy | PolicyFor | type[Policy] | PolicyConfig | Mapping[str, Any] | Path | str,
    codec: ChatCodec | ChatConfig | Mapping[str, Any] | str | None = None,
    domains: Sequence[str] = ("airline", "retail", "telecom"),
    split: str = "test",
    ids: Sequence[str] = (),
    limit: int | None = None,
    num_samples: int = 4,
    repetitions: int = 1,
    concurrency: int = 32,
    user: UserConfig | Mapping[str, Any] | str | None = None,
    reward: RewardConfig | Mapping[str, Any] | str | None = None,
    limits: LimitsConfig | Mapping[str, Any] | None = None,
    budget: BudgetConfig | Mapping[str, Any] | None = None,
    seed: int = 300,
    plugins: Sequence[str] = (),
    output: Path | str | None = None,
    resume: bool = False,
    on_episode: Callable[[EpisodeRecord], object] = lambda record: None,
    on_progress: Progress = lambda event: None,
) -> EvalReport:
    """Let a policy play tasks, and report how many it solves, with intervals and floors.

        report = await tau2rl.evaluate(policy="gold", domains=["mock"], split="base", user="scripted")

    `policy`: an object with `complete`, its class (made with the codec), a function attempt -> policy, a checkpoint's directory,
    or what `policy.kind` may be ("gold", "my_pkg:MyPolicy"), with its other settings as a mapping or `PolicyConfig`.
    `codec`: an object, or what `chat.protocol` may be, with its other settings as a mapping; default: the checkpoint's own
    template for `sglang` and `local`, JSON lines (`transcript`) for everything else.
    `user`: "scripted", "llm" or a litellm model name; default: tau2's own user simulator, as for the command.
    `reward`: the name of a preset, or settings. `plugins`: modules to import first, such as one that registers a domain.
    `budget`: caps and prices, as for the command: `{"max_usd": 5, "max_hours": 2}`. Before a cap is passed nothing more begins,
    what has begun is kept, and the report is incomplete and names the cap in `stopped_at`.
    `output`: a run folder to keep; with `resume` an evaluation that stands there is continued.
    `on_episode` is given each attempt's last record as it ends.

    Raises UserError for what cannot be run as asked.
    """
    settings.load_secrets()
    settings.quiet_libraries()
    references.search([Path.cwd()])
    references.import_all(plugins)
    given, policy_settings = _policy(policy)
    given_codec, chat_settings = _codec(codec, str(policy_settings["kind"]))
    values: dict[str, Any] = {
        "tasks": {"domains": domains, "split": split, "ids": ids, "limit": limit},
        "policy": policy_settings, "chat": chat_settings,
        "rollout": {"num_samples": num_samples, "concurrency": concurrency},
        "user": _user(user),
        "reward": {"preset": reward} if isinstance(reward, str) else _values(reward),
        "limits": _values(limits),
        "budget": _values(budget),
        "plugins": plugins, "seed": seed, "repetitions": repetitions, "resume": resume,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tau2rl-") as scratch:
        config = build(EvalConfig, {**values, "output": str(output if output is not None else Path(scratch) / "eval")})
        refuse_unpriced(config)
        with claimed(run_path(config), config, resume=resume) as claim, RunFolder.open(claim.path) as folder:
            with usage_kept(folder, on_progress) as heard:
                begun = await asyncio.to_thread(recipe.begin, config, folder, heard, codec=given_codec)
                try:
                    async with _policies(given, begun.prepared.codec) as policies:
                        await play(config, folder, begun.prepared, heard, policies=policies, on_episode=on_episode)
                except RunIncomplete as refused:  # a cap that cannot be held
                    raise UserError(str(refused)) from None
                report = await asyncio.to_thread(recipe.conclude, config, folder, begun)
            return EvalReport(report=report, episodes=tuple(folder.records()), failures=tuple(folder.failed_records()))


async def rollout(
    task: TaskRef | Attempt, *, env: Env, policy: Policy, codec: ChatCodec, limits: LimitsConfig | None = None, seed: int = 300
) -> Episode:
    """Play one conversation to its end: the loop that evaluation, data generation and training share.

    An environment is used once, and closed here. Every turn's seed comes from `seed`, or from that of an `Attempt`. Never raises
    for an environment, user simulator or policy that broke: the episode is FAILED, with its `failure`.
    """
    attempt = task if isinstance(task, Attempt) else Attempt(task=task, index=0, seed=seed)
    return await run_episode(attempt, env=env, policy=policy, codec=codec, limits=limits or LimitsConfig())


def tasks(
    domains: Sequence[str], split: str = "test", *, ids: Sequence[str] = (), limit: int | None = None, source: Path | None = None
) -> list[TaskRef]:
    """The tasks of some domains, in the order of tau2 or of the file `source`. Raises UserError."""
    return select(build(TasksConfig, {"source": source, "domains": domains, "split": split, "ids": ids, "limit": limit}))


def make_env(
    task: TaskRef | Attempt,
    *,
    user: UserConfig | Mapping[str, Any] | str | None = None,
    limits: LimitsConfig | Mapping[str, Any] | None = None,
    seed: int = 300,
) -> Env:
    """A fresh tau2 environment for one conversation on a task. Raises UserError, TaskFailure.

    `seed` is the user simulator's, where the task is no `Attempt`, which has its own.
    """
    settings.load_secrets()
    attempt = task if isinstance(task, Attempt) else Attempt(task=task, index=0, seed=seed)
    return tau2_env.make_env(attempt, user=build(UserConfig, _user(user)), limits=build(LimitsConfig, _values(limits)))


def make_codec(protocol: str = "transcript", *, tokenizer: Path | str | None = None, **options: Any) -> ChatCodec:
    """The chat codec that `chat.protocol` names; `tokenizer` is a checkpoint's directory or "bytes". Raises UserError."""
    settings_of_chat = {"protocol": protocol, "tokenizer": None if tokenizer is None else str(tokenizer), **options}
    return chat.make_codec(build(ChatConfig, settings_of_chat))


def _blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The function for a caller that cannot await: with a loop of its own, in a thread of its own where one runs already."""

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(function(*arguments, **options))
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=function.__name__)
        thread.start()
        running = asyncio.run_coroutine_threadsafe(function(*arguments, **options), loop)
        try:
            return running.result()
        except BaseException:  # Ctrl-C among them: episodes in flight are closed before it passes on
            running.cancel()
            raise
        finally:
            asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return call


evaluate_sync = _blocking(evaluate)


@asynccontextmanager
async def _policies(given: Any, codec: ChatCodec) -> AsyncGenerator[PolicyFor | None]:
    """Those of a policy that was given as an object; None where the settings name it."""
    if given is None:
        yield None
        return
    made: Any = cast("Callable[[ChatCodec], Any]", given)(codec) if inspect.isclass(given) else given
    async with open_given(made) as policies:
        yield policies


def _policy(policy: Any) -> tuple[Any, dict[str, Any]]:
    """The object, or None where settings say it all; and the settings."""
    if isinstance(policy, (PolicyConfig, Mapping)):
        return None, {"kind": "sglang", **_values(cast("PolicyConfig | Mapping[str, Any]", policy))}
    if isinstance(policy, Path) or (isinstance(policy, str) and Path(policy).is_dir()):
        return None, {"kind": "local", "checkpoint": str(policy)}
    if isinstance(policy, str):
        return None, {"kind": policy}
    return policy, {"kind": references.reference_of(policy)}


def _codec(codec: Any, kind: str) -> tuple[ChatCodec | None, dict[str, Any]]:
    if codec is None:
        return None, {"protocol": "native" if kind in POLICIES and POLICIES[kind].exchanges == "tokens" else "transcript"}
    if isinstance(codec, str):
        return None, {"protocol": codec}
    if isinstance(codec, (ChatConfig, Mapping)):
        return None, _values(cast("ChatConfig | Mapping[str, Any]", codec))
    if isinstance(codec, TranscriptCodec):  # whose "tokens" are no model's: limits and records treat it apart
        return codec, {"protocol": "transcript"}
    return codec, {"protocol": references.reference_of(codec)}


def _user(user: UserConfig | Mapping[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(user, str):
        return {"kind": user} if user in ("scripted", "llm") else {"kind": "llm", "model": user}
    return _values(user)


def _values(section: Section | Mapping[str, Any] | Iterable[Any] | None) -> dict[str, Any]:
    if section is None:
        return {}
    return dump(section) if isinstance(section, Section) else dict(cast("Mapping[str, Any]", section))
