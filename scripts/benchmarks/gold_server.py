"""The server of `rollouts_400.py`: samples each task's reference turns, every answer after so many seconds.

    python gold_server.py LATENCY TOKENIZER

Speaks as much of SGLang's HTTP as a policy asks for, prints its URL, and serves until its stdin closes. It does no more than it
must (the stub of the tests keeps and checks every request), because it shares the cores with what is measured. The routing key
of a request says whose turn it is: `retail/17#2@SEED`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from functools import cache
from urllib.parse import unquote

import orjson

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig
from tau2rl.env.tasks import gold_script
from tau2rl.types import TaskRef

if sys.argv[1:] in (["-h"], ["--help"]):
    print(__doc__)
    sys.exit()
CODEC = make_codec(ChatConfig(protocol="native", tokenizer=sys.argv[2]))
MODELS = {"data": [{"id": "reference turns", "max_model_len": 10**9}]}
turns_of: Counter[str] = Counter()


@cache
def script(task_key: str) -> list[list[int]]:
    """The turns that solve a task, as token ids."""
    name, _, task_id = task_key.partition("/")
    return [CODEC.write(actions) for actions in gold_script(TaskRef(domain=name, task_id=task_id, split="base"))]


def sample(session: str, body: bytes) -> dict[str, object]:
    """The next turn of a session; the last one for ever after."""
    turns = script(session.partition("#")[0])
    ids = turns[min(turns_of[session], len(turns) - 1)]
    turns_of[session] += 1
    meta = {
        "finish_reason": {"type": "stop", "matched": ids[-1]},
        "prompt_tokens": len(orjson.loads(body)["input_ids"]),
        "completion_tokens": len(ids),
        "cached_tokens": 0,
        "output_token_logprobs": [[-0.5, token, None] for token in ids],
    }
    return {"text": "", "output_ids": ids, "meta_info": meta}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, kept alive."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ", 2)[1]
            pairs = (line.partition(":") for line in head.splitlines()[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if path == "/generate":
                await asyncio.sleep(float(sys.argv[1]))
                answer = orjson.dumps(sample(unquote(headers["x-smg-routing-key"]), body))
            else:
                answer = orjson.dumps(MODELS if path == "/v1/models" else {})
            length = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
            writer.write(length.encode() + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()  # the client left


async def main() -> None:
    """Serve until stdin closes."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
