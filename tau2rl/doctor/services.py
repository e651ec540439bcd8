"""Who answers: the cluster, the policy's server, the user simulator's; and which keys are set, by name only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

from tau2rl import settings
from tau2rl.config import ChatConfig, PolicyConfig, UserConfig
from tau2rl.errors import UserError
from tau2rl.settings import LOOPBACK

State = Literal["ok", "missing", "optional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What was found: `CheckResult(name="torch", state="optional", detail="not installed", hint="pip install torch")`."""

    name: str
    state: State  # missing: this use needs it; optional: it is not there, and this use can do without
    detail: str
    hint: str = ""


def need(name: str, there: bool, detail: str, hint: str) -> CheckResult:
    """A check of something that the use cannot do without; the hint is for when it is not there."""
    return CheckResult(name=name, state="ok" if there else "missing", detail=detail, hint="" if there else hint)


PROBE_SECONDS = 2.0


def answers(url: str, *, headers: Mapping[str, str] | None = None, seconds: float | None = None) -> int | None:
    """The HTTP status of a GET; None when nobody speaks HTTP there within `seconds`, by default PROBE_SECONDS."""
    import aiohttp

    async def ask() -> int:
        # In all: aiohttp's own timeouts count from byte to byte where they are not `total`, and a server that drips goes on.
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS if seconds is None else seconds)
        # A proxy for the internet must not answer for a server of this machine.
        async with aiohttp.ClientSession(trust_env=urlsplit(url).hostname not in LOOPBACK, timeout=timeout) as session:
            async with session.get(url, headers=headers) as reply:
                return reply.status

    try:
        _ = urlsplit(url).port  # an impossible one is a ValueError here, and something else in each library
        return asyncio.run(ask())
    except (TimeoutError, aiohttp.ClientError, ValueError):
        return None


def connects(address: str, *, default_port: int, seconds: float | None = None) -> bool:
    """Whether somebody accepts TCP connections at `HOST:PORT` or `SCHEME://HOST:PORT`."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    patience = PROBE_SECONDS if seconds is None else seconds
    try:
        with socket.create_connection((parts.hostname or "", parts.port or default_port), timeout=patience):
            return True
    except (OSError, ValueError):  # ValueError: a port that is no number, or too large
        return False


# litellm's provider prefixes and the variables that it reads for them
KEY_OF_PROVIDER = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "azure": "AZURE_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
}
API_KEYS = ("_API_KEY", "HF_TOKEN")  # how names of the keys end that are listed
PROVIDER_OF_FAMILY = {"claude": "anthropic", "gemini": "gemini"}  # of names without a prefix


def check_cluster(address: str | None) -> CheckResult:
    """The cluster that the config or `RAY_ADDRESS` names: `http://HOST:8265`, `HOST:PORT`, `ray://HOST:PORT` or `auto`."""
    name, hint = "ray cluster", "start it with `ray start --head`, or leave `--address` and RAY_ADDRESS out"
    address = address or settings.ray_address()
    if not address:
        return CheckResult(name=name, state="ok", detail="none named: a run starts a local head and stops it afterwards")
    if address == "auto":
        return CheckResult(name=name, state="ok", detail="auto: a run looks for a head of this machine")
    if address.startswith(("http://", "https://")):
        there = answers(f"{address.rstrip('/')}/api/version") == HTTPStatus.OK
    else:
        there = connects(address, default_port=6379)
    return _reachable(name, there, address, hint)


def check_keys() -> CheckResult:
    """Which API keys are set: names, never values."""
    try:
        present = sorted(name for name in settings.credentials() if name.endswith(API_KEYS))
    except UserError as error:
        return CheckResult(name="keys", state="missing", detail=error.message, hint=error.hint)
    detail = f"set: {', '.join(present)}" if present else "none set"
    return CheckResult(
        name="keys",
        state="ok" if present else "optional",
        detail=detail,
        hint="" if present else f"export them, or name a 0600 file in {settings.SECRETS_FILE}",
    )


def check_user(user: UserConfig) -> CheckResult:
    """Whether the user simulator can speak: its server answers, or its API key is there."""
    name = "user simulator"
    if user.kind == "scripted":
        return CheckResult(name=name, state="ok", detail="scripted: needs no model")
    return _check_model(name, user.model, user.api_base, user.api_key_env, "user")


def check_policy(policy: PolicyConfig) -> CheckResult:
    """Whether the policy can be asked."""
    name = "policy"
    if policy.kind == "sglang":
        status = answers(f"{policy.url.rstrip('/')}/health")
        hint = "start the server, or say where it is: `--set policy.url=http://HOST:PORT`"
        return need(name, status == HTTPStatus.OK, _health_of(policy.url, status), hint)
    if policy.kind == "api":
        return _check_model(name, policy.model or "", policy.api_base, policy.api_key_env, "policy")
    return CheckResult(name=name, state="ok", detail=f"{policy.kind}: needs no server")


def _health_of(url: str, status: int | None) -> str:
    """What a server said of its health.

    >>> _health_of("http://h:1", None), _health_of("http://h:1", 404)
    ('http://h:1 does not answer', 'http://h:1 answers /health with HTTP 404')
    """
    said = {None: "does not answer", 200: "answers"}.get(status, f"answers /health with HTTP {status}")
    return f"{url} {said}"


def _check_model(name: str, model: str, api_base: str | None, key_env: str | None, section: str) -> CheckResult:
    """A server of one's own takes any key, unless the config names one."""
    key = key_of(model, api_base, key_env)
    if key:
        try:
            there = settings.secret(key) is not None
        except UserError as error:
            return CheckResult(name=name, state="missing", detail=error.message, hint=error.hint)
        if not there or not api_base:
            other = ", or use `user.kind: scripted`" if section == "user" else ""
            return need(name, there, f"{model}: {key} is {'set' if there else 'not set'}", f"set {key}{other}")
    if api_base:
        status = answers(f"{api_base.rstrip('/')}/models")
        there = status is not None and status < HTTPStatus.INTERNAL_SERVER_ERROR
        return _reachable(name, there, f"{model} at {api_base}", f"start the server, or correct `{section}.api_base`")
    detail = f"{model}: which key it needs is not known here"
    return CheckResult(name=name, state="optional", detail=detail, hint=f"`{section}.api_key_env` names it")


def key_of(model: str, api_base: str | None, key_env: str | None) -> str | None:
    """The variable of the key that a litellm model needs; None where it needs none, or nobody here knows which.

    >>> key_of("gpt-4.1", None, None), key_of("openai/mine", "http://127.0.0.1:1/v1", None), key_of("bedrock/x", None, None)
    ('OPENAI_API_KEY', None, None)
    """
    return key_env or (None if api_base else KEY_OF_PROVIDER.get(_provider(model)))


def _provider(model: str) -> str:
    """litellm's provider of a model: its prefix, else by the family of its name.

    >>> _provider("azure/gpt-4.1"), _provider("claude-sonnet-4"), _provider("gpt-4.1")
    ('azure', 'anthropic', 'openai')
    """
    prefix, slash, _ = model.partition("/")
    if slash:
        return prefix
    return next((provider for family, provider in PROVIDER_OF_FAMILY.items() if model.startswith(family)), "openai")


def _reachable(name: str, there: bool, where: str, hint: str) -> CheckResult:
    return need(name, there, f"{where} {'answers' if there else 'does not answer'}", hint)


def check_template(chat: ChatConfig) -> CheckResult:
    """Whether the chat template of a tokenizer can be used as these settings say."""
    from tau2rl.chat import make_codec
    from tau2rl.chat.cookbook import CookbookCodec
    from tau2rl.chat.native import NativeCodec

    try:
        codec = make_codec(chat)
    except UserError as error:
        return CheckResult(name="chat template", state="missing", detail=error.message, hint=error.hint)
    detail = f"calls as {codec.chat.family.name}" if isinstance(codec, (NativeCodec, CookbookCodec)) else "a codec of your own"
    return CheckResult(name="chat template", state="ok", detail=f"`{chat.tokenizer}`: {detail}")
