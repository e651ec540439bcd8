"""slime's job on a CPU, as far as it goes there: its real arguments, data source, rollout, conversion and loss.

Only the edges are replaced: SGLang's servers by a stub, Ray's object store by passing the object itself.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import GrpoConfig
from tau2rl.env.domain import domain
from tau2rl.env.tasks import select, write_prompts
from tau2rl.slime.argv import build_argv
from tau2rl.slime.model import read_shape
from tau2rl.slime.rollout import rollout_of
from tau2rl.slime.run_context import SlimeRun, write_files
from tau2rl.train.tiny import save_tokenizer, train_tokenizer
from tests.contract.slime_episodes import settings
from tests.stubs.http import Request, Response
from tests.stubs.sglang import SGLangStub
from tests.stubs.slime_stubs import module, parse


class RouterStub(SGLangStub):
    """An SGLang server that is its own router, with one worker. `slow(routing key)` are further seconds before an answer.

    With `aborts` slime's `abort_all` cuts off what is in flight at once, as SGLang does; without, nothing listens to it.
    """

    def __init__(self, *, slow: Callable[[str], float] = lambda key: 0.0, aborts: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.slow = slow
        self.aborts = aborts
        self._abort_all = asyncio.Event()

    async def reply(self, request: Request, mode: str) -> Response:
        if request.path == "/abort_request" and request.body.get("abort_all") and self.aborts:
            self._abort_all.set()
            self._abort_all = asyncio.Event()
        if request.path == "/generate":
            try:
                await asyncio.wait_for(self._abort_all.wait(), self.slow(request.headers["x-smg-routing-key"]) or 1e-3)
                return await super().reply(request, "abort")
            except TimeoutError:
                pass
        if request.path == "/workers":
            return Response(payload={"workers": [{"url": self.url}]})
        if request.path == "/v1/loads":
            return Response(payload={"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0}]})
        return await super().reply(request, mode)


def write_checkpoint(folder: Path) -> Path:
    """A tokenizer with a chat template, and the configuration of a model of two layers."""
    from transformers import Qwen3Config

    save_tokenizer(train_tokenizer([domain("mock").policy, "create_task user_1 Important Meeting"], vocab_size=600), folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(vocab_size=640, intermediate_size=64, tie_word_embeddings=True, max_position_embeddings=32768, **shape)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    return folder


class SlimeJob:
    """One job: its settings, slime's own arguments, its rollout manager. Close it at the end."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        server: RouterStub,
        *,
        checkpoint: Path,
        argv: Sequence[str] = (),
        attributes: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        """`argv`: further options; `attributes`: what slime's launch puts on `args`; `values`: settings of the run."""
        base = {"model": {"init": str(checkpoint)}, "chat": {}, "limits": {"context_tokens": 8192}}
        self.config: GrpoConfig = settings(**{**base, **values})
        self.run = SlimeRun(folder=folder, shape=read_shape(checkpoint))
        write_files(self.config, self.run)
        write_prompts(select(self.config.tasks), self.run.prompts)
        if self.config.train.val_every:
            write_prompts(select(self.config.val), self.run.eval_prompts)
        self.args = parse([*build_argv(self.config, self.run), *argv], monkeypatch)
        self.args.sglang_router_ip, self.args.sglang_router_port = "127.0.0.1", server.port
        vars(self.args).update(attributes or {})
        only_the_edges(monkeypatch)
        self.manager = self._manager()
        # Of this job: a later one has slime's modules afresh.
        self._loop = importlib.import_module("slime.utils.async_utils").get_async_loop()
        self._client = importlib.import_module("slime.utils.http_utils")._http_client

    def _manager(self) -> Any:
        """slime's RolloutManager with everything but the engines."""
        rollout = importlib.import_module("slime.ray.rollout")
        load = importlib.import_module("slime.utils.misc").load_function
        importlib.import_module("slime.utils.http_utils").init_http_client(self.args)
        made = object.__new__(rollout.RolloutManager.__ray_metadata__.modified_class)
        made.args = self.args
        made.servers, made._health_monitors, made.rollout_id = {}, [], -1
        made.data_source = load(self.args.data_source_path)(self.args)
        made.generate_rollout = load(self.args.rollout_function_path)
        made.eval_generate_rollout = load(self.args.eval_function_path)
        made.custom_reward_post_process_func = load(self.args.custom_reward_post_process_path)
        made.custom_convert_samples_to_train_data_func = None
        made.set_train_parallel_config({"dp_size": 2, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1})
        return made

    def close(self) -> None:
        """End what a job that broke off has left, free connections, end slime's event loop; safe to call twice."""
        if self._loop.loop.is_closed():
            return

        async def free() -> None:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await rollout_of(self.args).aclose()
            await self._client.aclose()

        self._loop.run(free())
        self._loop.loop.call_soon_threadsafe(self._loop.loop.stop)
        self._loop._thread.join()
        self._loop.loop.close()

    def played(self, rollout_id: int = 0) -> list[Any]:
        """The samples of a rollout, flat."""
        data, _ = self.manager._get_rollout_data(rollout_id)
        return data

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """A file of the run folder."""
        return [json.loads(line) for line in (self.run.folder / name).read_text("utf-8").splitlines()]


def only_the_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import torch

    sys.modules.pop("tau2rl.slime.data_source", None)  # it holds the slime of an earlier test
    if not importlib.util.find_spec("pylatexenc"):  # slime's rewards for mathematics, which nobody asks for here
        text = module("pylatexenc.latex2text")
        monkeypatch.setitem(sys.modules, "pylatexenc", module("pylatexenc", latex2text=text))
        monkeypatch.setitem(sys.modules, "pylatexenc.latex2text", text)
    monkeypatch.setattr(ray, "put", lambda value, **_: value)
    monkeypatch.setattr(ray, "get", lambda value, **_: value)
    monkeypatch.setattr(torch, "compile", _uncompiled)  # to compile a formula takes longer than to use it


def _uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """`torch.compile`, as a decorator with and without arguments."""
    return function or _uncompiled
