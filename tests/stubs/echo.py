"""A chat API that refuses everything and quotes the request's headers, as debugging gateways do: in every spelling of a key.

with EchoStub(status=500) as server: ...   # answers {"error": {"message": "no: ...; Bearer sk-..."}}
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

from tests.stubs.http import Request, Response, StubServer


class EchoStub(StubServer):
    """Answers POST /v1/chat/completions with an error. `requests` holds the calls."""

    main_paths = ("/v1/chat/completions", "/chat/completions")

    def __init__(self, *, status: int = 500, well: int = 0, **options: Any) -> None:
        """`well`: so many calls are answered first. `options`: see StubServer."""
        super().__init__(**options)
        self.status = status
        self.well = well

    @property
    def api_base(self) -> str:
        """What litellm and openai clients call the base URL."""
        return f"{self.url}/v1"

    async def reply(self, request: Request, mode: str) -> Response:
        if self.well:
            self.well -= 1
            choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            # A tier, since litellm's client for Groq asks for one
            head = {"id": "1", "object": "chat.completion", "model": "stub", "service_tier": "default"}
            return Response(payload={**head, "choices": [choice], "usage": usage})
        header = request.headers.get("authorization") or request.headers.get("x-api-key", "")
        key = header.removeprefix("Bearer ")
        spellings = [
            base64.b64encode(header.encode()).decode(),
            base64.b64encode(f"user:{key}".encode()).decode(),
            quote(header, safe=""),
            json.dumps({"authorization": header}),
            header,
        ]
        error = {"message": f"no: {'; '.join(spellings)}", "type": "x", "code": "x"}
        return Response(status=self.status, payload={"error": error})
