"""What is kept out of everything that is written; pinned here:

- the value of every variable that is named like a credential, in the environment or the secrets file, and of those named by hand
- in every spelling in which a server may quote it: raw, JSON, JSON in JSON, URL, HTML, hex, base64 within anything, cut off
- whatever stands around it in its variable: a line break, quotes, `Bearer`, JSON
- what stands where only a credential does, whoever's it is: behind `Bearer`, in a header or parameter that is named like a key
- placeholders, words, counts of tokens and paths are no secrets, and text without secrets stays as it is
- a config that holds one is refused
"""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, strategies as st

from tau2rl.errors import UserError
from tau2rl.runs.secrets import Redactor, is_secret

KEY = 'sk-a+b/c="ü"&0123456789abcdef'


@pytest.mark.parametrize(
    "name",
    [
        "DEEPSEEK_API_KEY", "MISTRAL_API_KEY", "GROQ_API_KEY", "WATSONX_ZENAPIKEY", "OPENAI_API_KEY_2", "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY", "AWS_BEARER_TOKEN_BEDROCK", "HF_TOKEN", "GITHUB_TOKEN", "VERTEXAI_CREDENTIALS",
        "DB_PASSWORD", "azure_client_secret", "GITHUB_PAT", "DB_PASS", "GATEWAY_AUTH", "SNOWFLAKE_JWT", "SESSION_COOKIE",
    ],
)  # fmt: skip
def test_a_variable_that_is_named_like_a_credential_holds_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KEY)
    assert Redactor().text(f"401 for {KEY}") == f"401 for [{name}]"


def test_other_variables_hold_one_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_GATEWAY", KEY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "something-long")
    assert Redactor().text(f"{KEY} something-long") == f"{KEY} something-long"
    assert Redactor(["LAB_GATEWAY"]).text(KEY) == "[LAB_GATEWAY]"


def test_the_secrets_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(f"TOGETHER_API_KEY='{KEY}'\n", "utf-8")
    (tmp_path / "keys").chmod(0o600)
    monkeypatch.setenv("TAU2RL_SECRETS_FILE", str(tmp_path / "keys"))
    assert Redactor().text(KEY) == "[TOGETHER_API_KEY]"


def test_the_password_of_a_url_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{quote(KEY, safe='')}@proxy.example:3128")
    monkeypatch.setenv("PLAIN_URL", "http://host.example/a-long-path")
    said = f"{KEY} of http://me:{quote(KEY, safe='')}@proxy.example:3128 and http://host.example/a-long-path"
    clean = "[HTTPS_PROXY] of http://me:[HTTPS_PROXY]@proxy.example:3128 and http://host.example/a-long-path"
    assert Redactor().text(said) == clean


def test_a_config_with_the_password_of_a_url_is_refused() -> None:
    with pytest.raises(UserError, match=r"`user\.api_base` is a URL with a password"):
        Redactor().refuse({"user": {"api_base": "http://me:pw@host/v1"}})
    with pytest.raises(UserError, match=r"`policy\.urls` is a URL with a password"):
        Redactor().refuse({"policy": {"urls": ["http://host", "http://me:pw@host"]}})
    for url in ("https://host/v1?v=2&api_key=abc", "https://host?access_token=abc", "https://ghp_0123456789abcdef0123@host"):
        with pytest.raises(UserError, match=r"`user\.api_base` is a URL with a password or a key"):
            Redactor().refuse({"user": {"api_base": url}})
    Redactor().refuse({"user": {"api_base": "http://me@host:80/v1?version=2"}, "name": "a:b@c"})


SPELLINGS = {
    "raw": KEY,
    "bearer": f"Bearer {KEY}",
    "json": json.dumps({"authorization": KEY}),
    "json in json": json.dumps(json.dumps({"authorization": KEY})),
    "json, not ascii": json.dumps(KEY, ensure_ascii=False),
    "repr": repr({"authorization": KEY}),
    "url": quote(KEY, safe=""),
    "url in lower case": re.sub("%..", lambda match: match[0].lower(), quote(KEY, safe="")),
    "form": quote_plus(f"key={KEY}"),
    "html": html.escape(f"<b>{KEY}</b>"),
    "slashes escaped": json.dumps(KEY).replace("/", r"\/"),
    "slashes escaped, in json": json.dumps(json.dumps(KEY).replace("/", r"\/")),
    "as gson and go have it": "".join(rf"\u{ord(char):04x}" if char in "=&/+" else char for char in KEY),
    "all of it escaped": "".join(rf"\u{ord(char):04X}" for char in KEY),
    "as bytes": repr(KEY.encode()),
    "url in url": quote(quote(KEY, safe=""), safe=""),
    "html by number": "".join(f"&#{ord(char)};" if char in '/="&' else char for char in KEY),
    "html in html": html.escape(html.escape(KEY)),
    "url, cut off": f"{quote(KEY, safe='')[:35]}…",
    "hex": KEY.encode().hex(),
    "hex in upper case": f"Bearer {KEY}".encode().hex().upper(),
    "hex, apart": KEY.encode().hex(":"),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of bearer": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of basic": base64.b64encode(f"user:{KEY}".encode()).decode(),
    "base64 for urls": base64.urlsafe_b64encode(f"me:{KEY}:more".encode()).decode(),
    "cut off": f"{KEY[:20]}…",
    "twice": KEY + KEY,
}  # fmt: skip


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_secret_is_found_however_it_is_spelled(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    clean = Redactor().text(f"the server said {SPELLINGS[how]} and left")
    assert "[GROQ_API_KEY]" in clean
    assert clean.startswith("the server said ") and clean.endswith(" and left")
    for trace in (
        "0123456789",
        "30313233343536",
        "30:31:32:33",
        "u0030",
        base64.b64encode(b"0123456789abcdef").decode()[4:12],
        "MDEyMzQ1Njc4",
        "AxMjM0NTY3OD",
        "wMTIzNDU2Nzg5",
    ):
        assert trace not in clean


def test_a_key_that_begins_with_another_one_is_replaced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_API_KEY", "sk-0123456789abcdef")
    monkeypatch.setenv("TWO_API_KEY", "sk-0123456789abcdef-more")
    assert Redactor().text("sk-0123456789abcdef-more") == "[TWO_API_KEY]"


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_rest_of_a_text_stays(before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROQ_API_KEY", KEY)
        assert Redactor().text(f"{before}{KEY}{after}").count("[GROQ_API_KEY]") >= 1
        if "sk-a" not in before:
            assert Redactor().text(before) == before


@pytest.mark.parametrize(
    "value", ["test", "EMPTY", "none", "anything", "changeme", "password", "not-needed", "sk-no-key-required"]
)
def test_a_word_is_no_secret(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    assert Redactor().text(f"{value} of {value}") == f"{value} of {value}"


def test_a_number_is_a_secret_where_it_counts_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "6021234567890123")
    monkeypatch.setenv("MAX_TOKENS", "20261128")
    assert Redactor().text("401 for 6021234567890123, 20261128 tokens") == "401 for [GROQ_API_KEY], 20261128 tokens"


@pytest.mark.parametrize("form", ["{}\n", " {} ", '"{}"', "Bearer {}", "basic {}\r\n", "x\n{}\ny"])
def test_a_secret_is_found_whatever_stands_around_it_in_its_variable(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", form.format(KEY))
    assert Redactor().text(f"'{KEY}' is wrong") == "'[GROQ_API_KEY]' is wrong"


def test_a_key_inside_of_json_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    account = {"type": "service_account", "client": {"private_key": f"-----BEGIN KEY-----\n{KEY}\nAbc-{KEY}\n-----END-----\n"}}
    monkeypatch.setenv("VERTEXAI_CREDENTIALS", json.dumps(account, indent=1))
    for said in (account["client"]["private_key"], json.dumps(account), f"Abc-{KEY}"):
        assert KEY not in Redactor().text(said) and "[VERTEXAI_CREDENTIALS]" in Redactor().text(said)
    assert Redactor().text("a service_account") == "a service_account"


DERIVED = "ya29.a0ARW5m7-made_from/a+key=="


@pytest.mark.parametrize(
    "said",
    [
        "Authorization: Bearer {}", "{{'authorization': 'bearer {}'}}", "Bearer%20{}", "x-goog-api-key: {}",
        '{{"api-key": "{}"}}',
        '{{\\"api_key\\": \\"{}\\"}}', "GET http://host/v1?v=1&api_key={}&x=1 failed", "https://blob/?sig={}", "?access_token={}",
    ],
)  # fmt: skip
def test_what_stands_where_a_credential_does_is_one(said: str) -> None:
    assert DERIVED[:20] not in Redactor().text(said.format(DERIVED))
    assert "[CREDENTIAL]" in Redactor().text(said.format(DERIVED))


@pytest.mark.parametrize(
    "said", ["basic troubleshooting.", "api_key_env: MY_API_KEY_2", "a bearer of bad-news", "key=5", "?key=value"]
)
def test_where_none_stands_the_text_stays(said: str) -> None:
    assert Redactor().text(said) == said


def test_a_path_is_no_secret_and_what_looks_like_one_is(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").touch()
    assert not is_secret(str(tmp_path / "credentials.json"))
    assert is_secret("/not/a/path/but+a/key")


def test_a_secret_that_is_too_long_for_a_path_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"{'a1' * 150}/x"  # a part of a path has 255 characters at most, and asking for a longer one is an error
    monkeypatch.setenv("AWS_SESSION_TOKEN", key)
    assert Redactor().text(f"it is {key}.") == "it is [AWS_SESSION_TOKEN]."


def test_json_values_are_clean_to_their_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    values = {"failures": [{"message": f"no {KEY}", "count": 3}], KEY: None, "shares": (0.5, True)}
    clean = {"failures": [{"message": "no [GROQ_API_KEY]", "count": 3}], "[GROQ_API_KEY]": None, "shares": [0.5, True]}
    assert Redactor().values(values) == clean


def test_a_config_that_holds_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    with pytest.raises(UserError, match=r"`user\.api_base` holds the value of a secret"):
        Redactor().refuse({"user": {"api_base": f"http://host/{KEY}"}})
    Redactor().refuse({"user": {"api_base": "http://host/", "model": "groq/x"}})


def test_steps_of_a_report_are_numbers_and_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_API_KEY", "sk-0123456789abcdef")
    assert Redactor().values({"validation": {10: 0.5}}) == {"validation": {"10": 0.5}}
