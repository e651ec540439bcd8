"""The only reader of the environment: secrets, machine paths, what a child process inherits."""

from __future__ import annotations

import codecs
import gc
import importlib.util
import ipaddress
import locale
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from tau2rl.errors import UserError

SECRETS_FILE = "TAU2RL_SECRETS_FILE"  # a file of NAME=VALUE lines that only its owner can read
OUTPUT_ROOT = "TAU2RL_OUTPUTS"
UTF8_MODE = "PYTHONUTF8"
NEW_OBJECTS = 50_000  # of Python's own 700, before it looks for garbage among the youngest
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_KEY = "none"  # what a server of one's own is given: litellm insists on a key
# Names of variables that hold a credential: litellm alone reads a hundred of them, and a server of one's own has others.
# The endings are those of AWS_ACCESS_KEY_ID, AWS_BEARER_TOKEN_BEDROCK, OPENAI_API_KEY_2 and CIRCLE_OIDC_TOKEN_V2.
CREDENTIAL = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|_(PASS|PWD|PAT|AUTH|JWT|BEARER|COOKIE))S?(_ID|_BEDROCK|_?V?\d+)?$",
    re.IGNORECASE,
)
SIGNATURES = ("sig", "signature", "auth", "code")  # further parameters of URLs that let their bearer in
TOKEN_LENGTH = 20  # characters; a user's name is shorter


def secret(name: str) -> str | None:
    """A secret by its variable name: from the environment, else from the secrets file. Raises UserError on an open file."""
    return os.environ.get(name) or _secrets_file().get(name)


def credentials(names: Iterable[str] = ()) -> dict[str, str]:
    """Every credential that a process of ours could send: what is set under a name like one or in `names`; passwords of URLs.

    From the environment, else from the secrets file. Raises UserError on an open file.
    """
    present = {**_secrets_file(), **{name: value for name, value in os.environ.items() if value}}
    named = {name: value for name, value in present.items() if value and (CREDENTIAL.search(name) or name in set(names))}
    passwords = {name: password_of(value) for name, value in present.items()}  # that of a proxy, of a tracking server
    return {**{name: value for name, value in passwords.items() if value}, **named}


def password_of(url: str) -> str | None:
    """What a URL lets its bearer in with: its password, a token in place of a user, a parameter named like a key; else None.

    >>> password_of("http://me:s3cr%40t@proxy:3128"), password_of("http://host/v1?v=2&api_key=abc")
    ('s3cr@t', 'abc')
    >>> password_of("http://me@proxy:3128"), password_of("a:b@c")
    (None, None)
    """
    try:
        parts = urlsplit(url.strip())
        if not parts.scheme or not parts.netloc:
            return None
        if parts.password:
            return unquote(parts.password)
        if parts.username and len(parts.username) >= TOKEN_LENGTH:
            return unquote(parts.username)
        return next(
            (value for name, value in parse_qsl(parts.query) if CREDENTIAL.search(name) or name.lower() in SIGNATURES), None
        )
    except ValueError:  # no URL
        return None


def load_secrets() -> None:
    """Put the secrets file's values where libraries look for them, in this process only; the environment wins."""
    for name, value in _secrets_file().items():
        os.environ.setdefault(name, value)


def ray_address() -> str | None:
    """The cluster that `RAY_ADDRESS` names, if any."""
    return os.environ.get("RAY_ADDRESS") or None


def output_root() -> Path:
    """Where run folders go: `TAU2RL_OUTPUTS`, else `outputs` below the current directory."""
    return Path(os.environ.get(OUTPUT_ROOT) or "outputs")


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer by the CPU quota of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or `max`: no quota
        return cores


def python_path() -> list[str]:
    """The directories of PYTHONPATH, absolute: where plug-ins may be."""
    return [str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that we start."""
    return {**os.environ, **(extra or {})}


def loopback_without_proxy() -> None:
    """A proxy for the internet is not asked for servers of this machine, by any library of this process or one below it."""
    names = ("no_proxy", "NO_PROXY")  # libraries look at one of the two, so each says what both say
    present = [host.strip() for name in names for host in os.environ.get(name, "").split(",") if host.strip()]
    if "*" not in present:  # which is understood only when it stands alone
        os.environ.update(dict.fromkeys(names, ",".join(dict.fromkeys([*present, *LOOPBACK]))))


def quiet_libraries() -> None:
    """Before tau2 or litellm is imported: no price list from the network, no telemetry, no warnings at import."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def reads_utf8() -> bool:
    """Whether a file that is opened without an encoding is read as UTF-8."""
    return sys.flags.utf8_mode == 1 or codecs.lookup(locale.getencoding()).name == "utf-8"


def begin_in_utf8() -> None:
    """Where the locale has another encoding, begin this process again in Python's UTF-8 mode; those below it inherit the mode.

    tau2 reads its files as the locale says, and a domain policy that is read as Latin-1 is another one.
    """
    if not reads_utf8():
        sys.stdout.flush()
        command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]  # the option works with `-I` and `-E`, too
        os.execve(sys.executable, command, child_environment({UTF8_MODE: "1"}))  # noqa: S606 - our own command, once more


def collect_rarely() -> None:
    """For a process that is about to import: what libraries make then is no garbage.

    tau2, litellm and torch make a million objects. With Python's own threshold, looking through them again and again is a third
    of a job's start.
    """
    gc.set_threshold(NEW_OBJECTS, 20, 20)


def api_key(model: str, api_base: str | None, variable: str | None) -> str | None:
    """The key for a litellm model; None leaves the choice to litellm, which looks for the provider's usual variable.

    `variable` is the setting that names the variable of the key. Raises UserError when that variable is not set. A provider's
    key goes to the provider's own address only: with `api_base` no key is sent but the one that is named.
    """
    if variable:
        key = secret(variable)
        if not key:
            raise UserError(f"`{variable}` is not set", hint="`api_key_env` names the variable that holds the API key")
        return key
    load_secrets()
    return NO_KEY if api_base else None


def uses_proxy(url: str) -> bool:
    """Whether the environment names a proxy for a URL. A server on loopback is never asked through one."""
    from urllib.request import getproxies, proxy_bypass  # 20 ms, which not every command has to pay

    parts = urlsplit(url)
    return not is_here(url) and parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def is_here(url: str) -> bool:
    """Whether a server is on this machine: no proxy may stand before it.

    >>> hosts = ("127.0.0.2", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost", "api.example.com")
    >>> [is_here(f"http://{host}:30000/v1") for host in hosts]
    [True, True, True, True, True, True, False]
    """
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".") == "localhost" or host.startswith("127.")  # `127.1` is 127.0.0.1 for a client
    address = getattr(address, "ipv4_mapped", None) or address  # `::ffff:127.0.0.1`, which is no loopback for Python 3.11
    return address.is_loopback or address.is_unspecified  # to which a client connects as to loopback


def litellm_options() -> dict[str, bool]:
    """What every litellm call with tools must say.

    Newer versions look for MCP servers among the tools, which needs a package that they do not install; ours are functions.
    """
    return {"_skip_mcp_handler": True} if importlib.util.find_spec("litellm.responses.mcp.chat_completions_handler") else {}


def python() -> str:
    """The interpreter that a child process of ours should use."""
    return sys.executable


def _secrets_file() -> dict[str, str]:
    named = os.environ.get(SECRETS_FILE)
    if not named:
        return {}
    path = Path(named)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the secrets file `{path}`: {error.strerror}", hint=f"{SECRETS_FILE} names it") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"others can read the secrets file `{path}`", hint=f"chmod 600 {path}")
    pairs = (line.partition("=") for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
