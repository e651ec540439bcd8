"""The options of commands that ask a model about kept episodes, and what that took in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tau2rl import settings
from tau2rl.cli.options import option
from tau2rl.config import UserConfig
from tau2rl.errors import UserError
from tau2rl.report.tables import dollars, quantity

if TYPE_CHECKING:
    from tau2rl.env.asked_model import AskedModel

PANEL = "The model that is asked"
JudgeModel = Annotated[
    str | None,
    option(
        "--judge-model",
        help="As litellm names it: `gpt-4.1`, `openai/NAME` with an address of your own.",
        metavar="NAME",
        panel=PANEL,
    ),
]
JudgeApiBase = Annotated[str | None, option("--judge-api-base", help="Where it is served.", metavar="URL", panel=PANEL)]
JudgeKey = Annotated[str | None, option("--judge-api-key-env", help="The variable with its key.", metavar="NAME", panel=PANEL)]
Judgments = Annotated[
    Path | None,
    option(
        "--judgments",
        help="Where its answers are kept, by the content of the question. (default: `judgments` in the outputs folder)",
        metavar="DIR",
        panel=PANEL,
    ),
]


def asked_model(
    name: str | None,
    api_base: str | None,
    api_key_env: str | None,
    kept: Path | None,
    *,
    seconds: float = 120.0,
    retries: int = 3,
) -> AskedModel | None:
    """The model that was named, with `seconds` for a call; None where none was.

    Raises UserError for options of one that is not named.
    """
    if name is None:
        if api_base or api_key_env or kept:
            raise UserError("it says how to ask a model, and none is named", hint="name it with `--judge-model`")
        return None
    from tau2rl.env.asked_model import AskedModel

    cache = kept or settings.output_root() / "judgments"
    shared: dict[str, Any] = {"api_base": api_base, "api_key_env": api_key_env, "timeout_seconds": seconds, "retries": retries}
    config = UserConfig(kind="llm", model=name, temperature=0.0, **shared)
    return AskedModel(config, cache=cache, who="judge")


def spent_words(model: AskedModel) -> str:
    """What the questions took: `gpt-4.1: 40 questions, 360 from judgments kept before, 52,000 tokens in, 4,100 out, $0.14`."""
    usage, price = model.usage, f", {dollars(model.usage.cost_usd)}" if model.usage.cost_usd else ""
    tokens = f"{quantity(usage.prompt_tokens, 'token')} in, {usage.completion_tokens:,} out"
    return f"{model.model}: {quantity(model.asked, 'question')} asked, {model.known} answered from what was kept, {tokens}{price}"
