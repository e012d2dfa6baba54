"""A stand-in for vLLM: what TRL imports and calls of it (0.31), on a second transformers model.

`modules()` are its modules; `Server` answers what TRL's client asks a `vllm serve`. What NCCL
carries between a training and a server goes through a queue here.
"""

from __future__ import annotations

import json
import queue
import threading
import types
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from transformers import AutoModelForCausalLM

ENGINES: list[LLM] = []
WIRE: queue.Queue[torch.Tensor] = queue.Queue()


@dataclass
class SamplingParams:
    """The parameters that TRL sends; an unknown one is a TypeError, as it is there."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 16
    logprobs: int | None = None
    stop_token_ids: list[int] | None = None


class Engine:
    """A model of its own, with other weights than the student's until it is given some."""

    def __init__(self, folder: str, max_model_len: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.max_model_len = max_model_len
        self.loads: list[set[str]] = []  # names of the weights of each load
        self.asked: list[SamplingParams] = []
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()

    @torch.no_grad()
    def load_weights(self, weights: Any) -> None:
        own = dict(self.model.named_parameters())
        for name, weight in weights:
            assert own[name].shape == weight.shape
            own[name].copy_(weight)
            self.loads[-1].add(name)

    @torch.no_grad()
    def generate(self, prompt: list[int], params: SamplingParams) -> list[int]:
        """The new ids, the token that ends the answer among them; the tokenizer's is not known."""
        assert len(prompt) + params.max_tokens <= self.max_model_len
        ids: list[int] = []
        while len(ids) < params.max_tokens:
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1]
            ids.append(int(torch.multinomial((logits / params.temperature).softmax(-1), 1)))
            if ids[-1] in (params.stop_token_ids or ()):
                break
        return ids


class LLM:
    """`vllm.LLM` in the process of the training."""

    def __init__(
        self, model: str, *, max_model_len: int, gpu_memory_utilization: float, **others: Any
    ) -> None:
        assert others["distributed_executor_backend"] == "external_launcher"
        self.gpu_memory_utilization = gpu_memory_utilization
        self.engine = Engine(model, max_model_len)
        self.engine.loads.append(set())
        self.resets = 0
        self.ended = False
        runner = types.SimpleNamespace(model=self.engine)
        worker = types.SimpleNamespace(model_runner=runner)
        self.llm_engine = types.SimpleNamespace(
            model_executor=types.SimpleNamespace(driver_worker=worker),
            engine_core=types.SimpleNamespace(shutdown=self._end),
        )
        ENGINES.append(self)

    def generate(
        self, prompts: list[dict[str, Any]], *, sampling_params: SamplingParams, use_tqdm: bool
    ) -> list[Any]:
        self.engine.asked.append(sampling_params)
        return [
            types.SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[
                    types.SimpleNamespace(
                        token_ids=self.engine.generate(prompt["prompt_token_ids"], sampling_params),
                        logprobs=None,
                    )
                ],
            )
            for prompt in prompts
        ]

    def reset_prefix_cache(self) -> None:
        self.resets += 1
        self.engine.loads.append(set())

    def _end(self) -> None:
        self.ended = True


class Server:
    """A `vllm serve` with the endpoints of its development mode."""

    def __init__(self, folder: str, max_model_len: int = 600) -> None:
        self.engine = Engine(folder, max_model_len)
        self.takes_weights = True
        self.development = True
        self.calls: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(outer.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._reply(outer.post(self.path, json.loads(body or b"{}")))

            def _reply(self, answer: Any) -> None:
                text = json.dumps(answer).encode() if answer != "" else b""
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def get(self, path: str) -> Any:
        transfer = {"backend": "nccl"} if self.takes_weights else None
        info = {"vllm_config": {"weight_transfer_config": transfer}}
        return {
            "/health": "",
            "/v1/models": {"data": [{"id": "tiny", "max_model_len": self.engine.max_model_len}]},
            "/server_info?config_format=json": info if self.development else None,
            "/get_world_size": {"world_size": 1},
        }.get(path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.calls.append(path)
        if path == "/v1/completions":
            names = SamplingParams.__dataclass_fields__
            params = SamplingParams(**{k: v for k, v in body.items() if k in names})
            self.engine.asked.append(params)
            answers = [(ids, self.engine.generate(ids, params)) for ids in body["prompt"]]
            return {
                "choices": [
                    {"prompt_token_ids": ids, "token_ids": answer, "logprobs": None}
                    for ids, answer in answers
                ]
            }
        if path == "/update_weights":
            info = body["update_info"]
            self.engine.loads.append(set())
            for name, dtype, shape in zip(
                info["names"], info["dtype_names"], info["shapes"], strict=True
            ):
                weight = WIRE.get(timeout=20)
                assert (str(weight.dtype), list(weight.shape)) == (f"torch.{dtype}", shape)
                self.engine.load_weights([(name, weight)])
        return {"success": True}


def send(iterator: Any, group: Any, src: int, post_iter_func: Any) -> None:
    """In place of NCCL: `packed_nccl_broadcast_producer`."""
    for item in iterator:
        WIRE.put(post_iter_func(item).clone())


def modules() -> dict[str, types.ModuleType]:
    """Name -> module, for `sys.modules`."""
    group = types.SimpleNamespace(store=None, socket=None)
    contents: dict[str, dict[str, Any]] = {
        "vllm": {
            "__version__": "0.31.0",
            "LLM": LLM,
            "RequestOutput": object,
            "SamplingParams": SamplingParams,
        },
        "vllm.sampling_params": {"StructuredOutputsParams": object},
        "vllm.utils": {},
        "vllm.utils.network_utils": {"get_ip": lambda: "127.0.0.1"},
        "vllm.distributed": {},
        "vllm.distributed.parallel_state": {
            "destroy_model_parallel": lambda: None,
            "destroy_distributed_environment": lambda: None,
        },
        "vllm.distributed.weight_transfer": {},
        "vllm.distributed.weight_transfer.nccl_common": {
            "trainer_init": lambda info: types.SimpleNamespace(group=group)
        },
        "vllm.distributed.weight_transfer.packed_tensor": {"packed_nccl_broadcast_producer": send},
    }
    made = {}
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(content)
        made[name] = module
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    return made
