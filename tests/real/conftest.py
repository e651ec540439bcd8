"""The real servers that `scripts/real_servers.sh start` started; where one does not answer, its tests fail and say so."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).parents[2] / "outputs" / "models" / "smollm2-135m"


def answering(variable: str, port: str, path: str) -> str:
    """The address of a server of this machine, at the port that the script's variable names."""
    url = f"http://127.0.0.1:{os.environ.get(variable, port)}"
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + path, timeout=30).close()
    except OSError as error:
        pytest.fail(f"nothing answers at {url}{path} ({error}); start it: scripts/real_servers.sh start", pytrace=False)
    return url


@pytest.fixture(scope="session")
def sglang() -> str:
    """The URL of a real SGLang server."""
    return answering("SGLANG_PORT", "31000", "/model_info")


@pytest.fixture(scope="session")
def llama() -> str:
    """The base URL of llama.cpp's OpenAI-compatible server."""
    return answering("LLAMA_PORT", "31001", "/v1/models") + "/v1"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The model that the SGLang server serves, as a Hugging Face checkpoint."""
    if not (CHECKPOINT / "config.json").is_file():
        pytest.fail(f"no checkpoint in {CHECKPOINT}; scripts/real_servers.sh start makes it", pytrace=False)
    return CHECKPOINT
