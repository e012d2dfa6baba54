"""Rollouts with vLLM: requirement checks, and weight sync that leaves the base weights untouched.

TRL starts vLLM, queries it and transfers weights (`trl.generation`). It merges the adapter into the
base's weights before a transfer and subtracts it afterwards, which rounding does not undo. The base
is our teacher, so we merge into copies instead.
"""

from __future__ import annotations

import gc
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from trl import DistillationConfig

from safesteer import distributed
from safesteer.config.settings import ModelSettings, TrainSettings
from safesteer.errors import InputError
from safesteer.models.context import max_positions
from safesteer.models.files import locate

_ASKED = "train.rollouts = 'vllm'"
_PLAIN = "train.rollouts=transformers"
_START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"
    """ --weight-transfer-config '{"backend": "nccl"}'"""
)
_TIMEOUT = 10.0  # seconds in which a running server answers
# Variables that a launcher sets for each process, and TRL for a colocated vLLM.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_rollouts(settings: TrainSettings, device: torch.device) -> None:
    """Check that vLLM can generate the rollouts, if the settings ask for it, on `device`.

    Raises:
        InputError: vLLM is missing or cannot be used here, or the server is down, takes no weights
            or has no room for our prompts.
    """
    if settings.rollouts != "vllm":
        return
    if find_spec("vllm") is None:
        raise InputError(
            f"{_ASKED}: vLLM is not installed. Try: pip install 'safesteer[vllm]', or {_PLAIN}"
        )
    if distributed.layout() != "replicated":
        raise InputError(
            f"{_ASKED}: every process needs all weights to send them, and {distributed.layout()}"
            f" splits them. Try: copies of the model (accelerate/ddp-2-gpus), or {_PLAIN}"
        )
    _check_device(device)
    vllm = settings.advanced.vllm
    if vllm.mode == "server" and distributed.is_main():
        _check_server(vllm.server_base_url.rstrip("/"), _longest(settings))


def check_model(settings: ModelSettings) -> None:
    """Raise InputError for a model whose weights cannot be sent to vLLM."""
    if ":" in settings.device and distributed.world_size() == 1:
        raise InputError(
            f"{_ASKED} and model.device = '{settings.device}': TRL uses the first device. Try:"
            " model.device=auto, with CUDA_VISIBLE_DEVICES to choose the device"
        )
    kind, path = locate(settings)
    if kind == "gguf":
        raise InputError(
            f"{_ASKED}: vLLM cannot take new weights for {settings.id}, a GGUF file. Try: the model"
            f" as a hub id or a folder of safetensors, or {_PLAIN}"
        )
    config = path / "config.json"
    if config.is_file() and "quantization_config" in json.loads(config.read_text("utf-8")):
        raise InputError(
            f"{_ASKED}: the weights of {settings.id} are quantized, and an adapter cannot be merged"
            f" into them without loss. Try: the model without quantization, or {_PLAIN}"
        )


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError(
            f"{_ASKED}: needs a CUDA device, and the model is on '{device.type}'. Try: {_PLAIN}"
        )


def _check_server(url: str, longest: int) -> None:
    where = f"train.advanced.vllm.server_base_url = '{url}'"
    _ask(url, "/health", where)
    info = _ask(url, "/server_info?config_format=json", where)
    if not info.get("vllm_config", {}).get("weight_transfer_config"):
        raise InputError(f"{where}: this server takes no weights. Try: start it with `{_START}`")
    models = _ask(url, "/v1/models", where).get("data") or [{}]
    room = models[0].get("max_model_len")
    if room is not None and room < longest:
        raise InputError(
            f"{where}: this server has room for {room} tokens, and"
            f" train.advanced.max_prompt_length + train.max_completion_length = {longest}. Try:"
            f" start it with --max-model-len {longest}"
        )


def _ask(url: str, path: str, where: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url + path, timeout=_TIMEOUT) as reply:
            text = reply.read()
        found = json.loads(text) if text.strip() else {}
    except urllib.error.HTTPError as error:
        if error.code == 404 and path.startswith("/server_info"):
            raise InputError(
                f"{where}: this server does not let its weights be set. Try: start it with"
                f" `{_START}`"
            ) from None
        raise InputError(
            f"{where}: {path} answers {error.code}. Try: the address of a vLLM server"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(
            f"{where}: no vLLM server answers there ({reason}). Try: start one with `{_START}` and"
            " wait until it is up"
        ) from None
    return found if isinstance(found, dict) else {}


def _longest(settings: TrainSettings) -> int:
    return settings.advanced.max_prompt_length + settings.max_completion_length


def vllm_arguments(settings: TrainSettings, student: Any) -> dict[str, Any]:
    """Return the arguments of `trl.DistillationConfig` that concern vLLM."""
    if settings.rollouts != "vllm":
        return {}
    # A model's own length would reserve memory for a context that no rollout has.
    longest = _longest(settings)
    limit = max_positions(student) or longest
    vllm = settings.advanced.vllm
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_server_base_url": vllm.server_base_url.rstrip("/"),
        "vllm_gpu_memory_utilization": vllm.gpu_memory_utilization,
        "vllm_max_model_length": min(longest, limit),
    }


@contextmanager
def starting(args: DistillationConfig) -> Iterator[None]:
    """Keep vLLM from reporting usage and TRL from changing the environment while vLLM starts.

    The variables that TRL sets would make later stages, and a second training, look launched.
    """
    if not args.use_vllm:
        yield
        return
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    before = {name: os.environ.get(name) for name in _LAUNCHED}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def adapt(generation: Any, ends: list[int]) -> None:
    """Make TRL's `VLLMGeneration` stop at the tokens `ends` and send `merged_weights`.

    Raises InputError for weights that are split over processes or quantized.
    """
    distributed = generation._dist
    if distributed.is_fsdp or distributed.zero_stage:
        raise InputError(f"{_ASKED}: FSDP and DeepSpeed split the weights. Try: {_PLAIN}")
    if not all(parameter.is_floating_point() for parameter in generation.model.parameters()):
        raise InputError(
            f"{_ASKED}: an adapter cannot be merged into quantized weights. Try: {_PLAIN}"
        )
    generation.generation_kwargs = {**generation.generation_kwargs, "stop_token_ids": ends}
    generation._iter_named_params = partial(merged_weights, generation.model)


def release(generation: Any) -> None:
    """Disconnect from the server, or shut a colocated vLLM down to free its memory."""
    if generation.mode == "server":
        if distributed.is_main():
            generation.vllm_client.close_communicator()
        return
    llm = generation.__dict__.pop("llm")
    from vllm.distributed import parallel_state

    llm.llm_engine.engine_core.shutdown()
    del llm
    parallel_state.destroy_model_parallel()
    if distributed.world_size() == 1:  # with several, the group belongs to the training
        parallel_state.destroy_distributed_environment()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.no_grad()
def merged_weights(student: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight under its name in the base model, with the adapter merged into a copy.

    PEFT's own `merge` runs on one layer at a time, and the base's weights stay the same bits.
    """
    if torch.cuda.is_available():
        # TRL may read on a stream that does not wait for the optimizer's.
        torch.cuda.synchronize()
    prefix = getattr(student, "prefix", None) if hasattr(student, "peft_config") else None
    for name, parameter in student.named_parameters():
        if prefix is not None and (prefix in name or "original_module" in name):
            continue
        layer, adapted, own = name.partition(".base_layer.")
        if adapted:
            weight = _merged(student.get_submodule(layer), own)
            name = f"{layer}.{own}"
        else:
            weight = parameter.data
        if prefix is not None:
            name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        yield name, weight


def _merged(layer: Any, name: str) -> torch.Tensor:
    """A parameter of an adapted layer with the adapter merged; the layer itself is unchanged."""
    own = layer.get_base_layer()
    before = {key: parameter.data for key, parameter in own.named_parameters()}
    try:
        layer.merge(safe_merge=True)  # into a copy, which replaces the weight until `finally`
        return own.get_parameter(name).data
    finally:
        for key, data in before.items():
            own.get_parameter(key).data = data
        layer.merged_adapters.clear()
