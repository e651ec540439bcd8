"""`tau2rl serve`: an OpenAI-compatible endpoint that answers with the best of k."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tau2rl import console, plugins, settings
from tau2rl.cli.judge_options import JudgeApiBase, JudgeKey, JudgeModel, Judgments, asked_model
from tau2rl.cli.options import option
from tau2rl.config import PolicyConfig
from tau2rl.config.extras import refuse_command
from tau2rl.errors import UserError

if TYPE_CHECKING:
    from tau2rl.serve.app import Answers
    from tau2rl.serve.candidates import MessagePolicy
    from tau2rl.serve.choice import VerifierPool

MAX_CALLS = 30
POLICY, CHOICE, SANDBOX, SERVER = "The policy", "The choice", "A sandbox of the tools", "The endpoint"
DEFAULT = ("rules", "consistency")
RETRIES: int = PolicyConfig.model_fields["retries"].default


ModelName = Annotated[str | None, option(help="As litellm names it.", metavar="NAME", panel=POLICY)]
Checkpoint = Annotated[
    Path | None,
    option(help="In place of a model: a checkpoint's directory, sampled in this process.", metavar="DIR", panel=POLICY),
]
ApiBase = Annotated[str | None, option(help="Base URL of an OpenAI-compatible server.", metavar="URL", panel=POLICY)]
ApiKeyEnv = Annotated[str | None, option(help="The variable with its key.", metavar="NAME", panel=POLICY)]
Temperature = Annotated[
    float, typer.Option(min=0, help="Of the attempts; the client's own holds with k = 1.", rich_help_panel=POLICY)
]
PolicyTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds for one call of it, its retries included.", rich_help_panel=POLICY)
]
PolicyRetries = Annotated[
    int | None, option(min=0, help=f"Tries again after one that is overloaded or unreachable. (default: {RETRIES})", panel=POLICY)
]
Device = Annotated[str | None, option(help="Of a checkpoint: `cpu`, `cuda`. (default: cpu)", panel=POLICY)]
Attempts = Annotated[int, typer.Option("-k", "--k", min=1, max=64, help="Attempts to choose from.", rich_help_panel=CHOICE)]
Verifier = Annotated[
    list[str] | None,
    option(
        help="rules, consistency, logprob, judge, a file of `select --fit`, or yours as `package.module:name`. "
        "The first decides, the next ones break ties. (default: rules, then consistency)",
        metavar="NAME",
        panel=CHOICE,
    ),
]
VerifierTimeout = Annotated[
    float,
    typer.Option(min=0.1, help="Seconds for a judgement; a verifier that takes longer is left out.", rich_help_panel=CHOICE),
]
ReadTool = Annotated[
    list[str] | None,
    option(
        help="Without a sandbox: tools that change nothing, as patterns; every other one writes. "
        "(default: get_*, find_*, list_*, search_*, check_*, calculate, think)",
        metavar="PATTERN",
        panel=CHOICE,
    ),
]
Domain = Annotated[
    str | None,
    option(
        help="A domain of tau2's registry, whose policy, tools and database this server then has itself.",
        metavar="NAME",
        panel=SANDBOX,
    ),
]
Journal = Annotated[
    Path | None,
    option(
        help="Carry out the writes in this file first, and write on it what is committed. (default: nothing outlives the server)",
        metavar="FILE",
        panel=SANDBOX,
    ),
]
MaxCalls = Annotated[
    int | None,
    option(
        min=1,
        help="Messages with calls, of one call or of several, that an attempt may make before it answers; one that "
        "goes on is dropped. (default: 30)",
        panel=SANDBOX,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=SERVER)]
KeyEnv = Annotated[
    str | None,
    option(
        help="The variable with the key that clients send. (default: a new one, which is printed)", metavar="NAME", panel=SERVER
    ),
]
ServedName = Annotated[str, typer.Option(help="The model's name for clients.", rich_help_panel=SERVER)]
MaxBodyMib = Annotated[float, typer.Option(min=0.001, help="Of a request; a larger one gets 413.", rich_help_panel=SERVER)]
MaxRequests = Annotated[int, typer.Option(min=1, help="At once; a further one gets 429.", rich_help_panel=SERVER)]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for a request; then it gets 504.", rich_help_panel=SERVER)]


def serve(
    model: ModelName = None,
    checkpoint: Checkpoint = None,
    api_base: ApiBase = None,
    api_key_env: ApiKeyEnv = None,
    temperature: Temperature = 1.0,
    policy_timeout: PolicyTimeout = 60.0,
    policy_retries: PolicyRetries = None,
    device: Device = None,
    k: Attempts = 4,
    verifier: Verifier = None,
    verifier_timeout: VerifierTimeout = 60.0,
    read_tool: ReadTool = None,
    judge_model: JudgeModel = None,
    judge_api_base: JudgeApiBase = None,
    judge_api_key_env: JudgeKey = None,
    judgments: Judgments = None,
    domain: Domain = None,
    journal: Journal = None,
    max_calls: MaxCalls = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    key_env: KeyEnv = None,
    served_name: ServedName = "tau2rl",
    max_body_mib: MaxBodyMib = 4.0,
    max_requests: MaxRequests = 16,
    timeout: Timeout = 300.0,
) -> None:
    """Serve a policy with best of k behind an OpenAI-compatible endpoint, until it is interrupted.

    Without `--domain` your program has the tools. Each message is chosen among k proposals,
    before any of their calls is carried out. What a call leads to is not known, and the
    conversation is not tried more than once. From the first write on (see `--read-tool`), a
    message is asked for once and passed on.

    With `--domain` the server has policy, tools and database of a tau2 domain, and your program
    sends what the user says. Each answer is chosen among k attempts, which carry out their calls
    on copies of the database; only the chosen attempt's writes are carried out on the database
    itself. The database is tau2's, in memory: no other system is written to. An attempt ends where
    the agent speaks: what the user would say to it is not simulated.
    """
    refuse_command("tau2rl serve")
    _refuse_idle(domain, journal=journal, max_calls=max_calls, read_tool=read_tool)
    from tau2rl.serve.app import Limits, make_app, serve as serve_app
    from tau2rl.serve.choice import VerifierPool
    from tau2rl.verify.verifiers import scorers

    plugins.search([Path.cwd()])
    # What is late by then does not go on for long.
    judge = asked_model(judge_model, judge_api_base, judge_api_key_env, judgments, seconds=verifier_timeout, retries=1)
    chosen = scorers(verifier or DEFAULT, model=judge, seconds=verifier_timeout)
    if judge is not None and not any(name == "judge" for one in chosen for name in (one.name, *one.signals)):
        raise UserError("`--judge-model` is never asked", hint="add `--verifier judge`")
    key = _key(key_env)
    logprobs = any(one.name == "logprob" or "logprob" in one.signals for one in chosen)
    policy = _policy(model, api_base, api_key_env, policy_retries, checkpoint, device, seconds=policy_timeout, logprobs=logprobs)
    verifiers = VerifierPool(chosen, seconds=verifier_timeout, at_once=max_requests)
    with _only_writer(journal):
        answers = _answers(policy, verifiers, k, temperature, read_tool, domain, journal, max_calls or MAX_CALLS)
        limits = Limits(body_bytes=int(max_body_mib * 2**20), at_once=max_requests, seconds=timeout)
        app = make_app(answers, policy, model=served_name, key=key, limits=limits)
        console.say(_mode_words(k, domain, [one.name for one in chosen]))

        def ready(address: str) -> None:
            console.emit(f"{address}  model {served_name}" + ("" if key_env else f"  key {key}"))

        serve_app(app, policy, host=host, port=port, ready=ready)


def _refuse_idle(domain: str | None, *, journal: Path | None, max_calls: int | None, read_tool: list[str] | None) -> None:
    """Raise UserError for an option that does nothing with, or without, a sandbox."""
    if domain is None and journal is not None:
        raise UserError("`--journal` keeps what is committed to a sandbox", hint="name one with `--domain`")
    if domain is None and max_calls is not None:
        raise UserError("`--max-calls` bounds what an attempt does in a sandbox", hint="name one with `--domain`")
    if domain is not None and read_tool:
        raise UserError("a domain knows which of its tools write", hint="leave `--read-tool` out")


def _policy(
    model: str | None, api_base: str | None, api_key_env: str | None, retries: int | None, checkpoint: Path | None,
    device: str | None, *, seconds: float, logprobs: bool,
) -> MessagePolicy:  # fmt: skip
    """Who proposes: a server's model, or a checkpoint in this process. Raises UserError for both, neither, and idle options."""
    if (model is None) == (checkpoint is None):
        raise UserError("one policy is served", hint="`--model` names that of a server, `--checkpoint` one on this machine")
    if model is not None:
        if device is not None:
            raise UserError("`--device` is where a checkpoint is sampled in this process", hint="name one with `--checkpoint`")
        from tau2rl.serve.candidates import PolicyServer

        config = PolicyConfig(
            kind="api", model=model, api_base=api_base, api_key_env=api_key_env, timeout_seconds=seconds,
            retries=RETRIES if retries is None else retries,
        )  # fmt: skip
        return PolicyServer(config, logprobs=logprobs)
    idle = {"--api-base": api_base, "--api-key-env": api_key_env, "--policy-retries": retries}
    if named := [option for option, value in idle.items() if value is not None]:
        raise UserError(f"`{named[0]}` is about a policy server, and a checkpoint has none", hint="leave it out")
    from tau2rl.serve.candidates import CheckpointPolicy

    assert checkpoint is not None
    return CheckpointPolicy(checkpoint, seconds=seconds, device=device or "cpu")


def _answers(
    policy: MessagePolicy, verifiers: VerifierPool, k: int, temperature: float, read_tool: list[str] | None, domain: str | None,
    journal: Path | None, max_calls: int,
) -> Answers:  # fmt: skip
    if domain is None:
        from tau2rl.serve.turns import READS, Turns

        return Turns(policy, verifiers, k=k, temperature=temperature, reads=read_tool or READS)
    from tau2rl.env.sandbox import Sandbox
    from tau2rl.serve.conversations import Conversations

    sandbox = Sandbox(domain, journal=journal)
    return Conversations(policy, verifiers, sandbox, k=k, temperature=temperature, max_calls=max_calls)


def _only_writer(journal: Path | None) -> contextlib.AbstractContextManager[None]:
    if journal is None:
        return contextlib.nullcontext()
    from tau2rl.env.sandbox import only_writer

    return only_writer(journal)


def _key(variable: str | None) -> str:
    if variable is None:
        return f"sk-{secrets.token_urlsafe(24)}"
    if not (key := settings.secret(variable)):
        raise UserError(f"`{variable}` is not set", hint="`--key-env` names the variable with the key that clients send")
    return key


def _mode_words(k: int, domain: str | None, verifiers: list[str]) -> str:
    by = ", then ".join(verifiers)
    if domain is None:
        return f"no sandbox: each message is the best of {k} by {by}, up to the first write; your program carries out the calls"
    return f"sandbox of `{domain}`: each answer is the best of {k} attempts by {by}; the chosen one's writes are carried out here"
