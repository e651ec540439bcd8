"""`tau2rl chat show`: what a checkpoint's chat template makes of a task, before anything is sampled or trained."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.lazy import examples
from tau2rl.cli.options import RUN, ConfigFile, Json, Sets
from tau2rl.config import DOMAINS, EvalConfig, TasksConfig, UserConfig, build, load_config
from tau2rl.errors import EpisodeFailure, UserError

if TYPE_CHECKING:
    from tau2rl.chat.cookbook import CookbookCodec
    from tau2rl.chat.native import NativeCodec
    from tau2rl.types import Actions, Opening, ToolSchema

app = typer.Typer(help="Look at what a chat template writes.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "tau2rl chat show --tokenizer DIR",
        "tau2rl chat show --tokenizer DIR --task retail/17",
        "tau2rl chat show --tokenizer DIR --set chat.thinking=keep --json",
    )
)
def show(
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="A checkpoint's directory, or `bytes`.", metavar="DIR", rich_help_panel=RUN)
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Whose prompt is shown: `retail/17`.", metavar="TASK", rich_help_panel=RUN)
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print the exact prompt of a task, an example turn, the tool format, the thinking, the stop tokens, and token counts.

    Exits with 2 and the reason where the template cannot be used.
    """
    chosen = load_config(EvalConfig, config, [*(sets or ()), *([f"chat.tokenizer={tokenizer}"] if tokenizer else [])])
    from tau2rl.chat import make_codec
    from tau2rl.chat.cookbook import CookbookCodec
    from tau2rl.chat.native import NativeCodec

    codec = make_codec(chosen.chat)
    if not isinstance(codec, (NativeCodec, CookbookCodec)):
        raise UserError(f"chat.protocol `{chosen.chat.protocol}` writes through no chat template", hint="`native` or `cookbook`")
    shown: dict[str, Any] = {
        "tokenizer": chosen.chat.tokenizer,
        "protocol": chosen.chat.protocol,
        **_found(codec),
        **_texts(codec, task),
    }
    if as_json:
        console.emit_json(shown)
        return
    for name in ("tokenizer", "protocol", "tool_format", "calls_a_turn", "text_beside_calls", "thinking", "prompt_ends_with"):
        console.emit(f"{name.replace('_', ' '):18} {shown[name]}")
    stops = ", ".join(f"{stop['text']} ({stop['id']})" for stop in shown["stop_tokens"])
    console.emit(f"{'stop tokens':18} {stops}")
    openings = ", ".join(f"{name} {count}" for name, count in shown["opening_tokens"].items())
    console.emit(f"{'tokens to open':18} {openings}")
    for name in ("prompt", "turn"):
        console.emit(f"\n--- {name} ({len(shown[f'{name}_ids'])} tokens) ---\n{shown[name]}")


def _found(codec: NativeCodec | CookbookCodec) -> dict[str, Any]:
    """What the proof found out about the template."""
    chat = codec.chat
    return {
        "tool_format": chat.family.name,
        "calls_a_turn": "one" if chat.one_call else "several",
        "text_beside_calls": chat.family.text_beside,
        "thinking": chat.thinking,
        "prompt_ends_with": repr(chat.begins),
        "append_only": codec.append_only,
        "stop_tokens": [{"id": i, "text": chat.tokenizer.decode([i])} for i in codec.stop_token_ids],
    }


def _texts(codec: NativeCodec | CookbookCodec, task: str | None) -> dict[str, Any]:
    from tau2rl.env.domain import domain
    from tau2rl.env.tau2_env import GREETED
    from tau2rl.types import Opening

    def opening(name: str) -> Opening:
        loaded = domain(name)
        return Opening(domain_policy=loaded.policy, messages=GREETED, tools=loaded.tools)

    shown = asyncio.run(_opening(task)) if task else opening("mock")
    prompt, turn = codec.open(shown), codec.write(_example(shown.tools, thinks=codec.chat.thinking != "off"))
    decode = codec.chat.tokenizer.decode
    return {
        "task": task,
        "opening_tokens": {name: len(codec.open(opening(name))) for name in DOMAINS},
        "prompt": decode(prompt),
        "turn": decode(turn),
        "prompt_ids": prompt,
        "turn_ids": turn,
    }


async def _opening(task: str) -> Opening:
    """The opening of a task with the scripted user. Raises UserError: there is no such task, or it cannot be opened."""
    from tau2rl.config import LimitsConfig
    from tau2rl.env.tasks import select
    from tau2rl.env.tau2_env import make_env
    from tau2rl.types import Attempt

    name = task.partition("/")[0]
    ref = select(build(TasksConfig, {"domains": [name], "ids": [task], "split": "base"}))[0]
    env = make_env(Attempt(task=ref, index=0, seed=0), user=build(UserConfig, {"kind": "scripted"}), limits=LimitsConfig())
    try:
        return await env.open()
    except EpisodeFailure as failure:
        raise UserError(f"{task} cannot be opened: {failure}") from None
    finally:
        await env.close(grade=False)


def _example(tools: tuple[ToolSchema, ...], *, thinks: bool) -> Actions:
    """A turn that calls the first tool that has arguments, each with a value of its type."""
    from tau2rl.types import CallTool, Think

    functions = [tool.get("function", tool) for tool in tools]
    function = next((f for f in functions if f["parameters"].get("required")), functions[0])
    properties = function["parameters"].get("properties", {})
    values: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    arguments = {key: values.get(properties[key].get("type"), "TEXT") for key in function["parameters"].get("required", ())}
    call = CallTool(name=function["name"], arguments=arguments)
    return (Think(text="What I think."), call) if thinks else (call,)
