"""Names of variables, and keys that are not written. (pytest tests/config)"""

from __future__ import annotations

import pytest

from safesteer.config.load import load_settings
from safesteer.config.settings import EndpointSettings
from safesteer.errors import InputError


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-hush",
        "sk_hush",
        "hf_hush",
        "fw_3ZhushAbCdEf",
        "csk-hush",
        "Ab3hushCd5Ef7hush",  # capitals, small letters and digits
        "JUDGE_3f9a1bhush7c2d4e5f6a7b8c9d",
        "AIzahush",
        "hush0" * 8,  # letters and digits alone
        "hush_" * 13,  # longer than any name
        "1hush",
        "hush hush",
        "",
    ],
)
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(key):
    """Settings are written into the run, where a key has no place."""
    with pytest.raises(InputError) as raised:
        load_settings(overrides=[f'evaluate.endpoint.api_key_env="{key}"'])
    assert "evaluate.endpoint.api_key_env: expected the name" in str(raised.value)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "HF_TOKEN", "_key2", "JUDGE", "sky_key", "AZUREOPENAIAPIKEYNUMBER2"]
)
def test_names_of_variables_are_taken(name):
    assert EndpointSettings(api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    "address",
    [
        "http://user:hush@host/v1",
        "http://hush@host/v1",
        "https://host/v1?api_key=hush",
        "https://host/v1#hush",
        "https://host/v1/sk-hush/chat",
        "https://host/hush/aB3dEfGh1JkLmN0pQrSt",
        "https://host/%73k-hush",
        "https://host/v1?x=gsk_hush1234567890abcd",
        "https://host/v1?code=hush",
        "https://host/v1?%6bey=hush",
        "https://host/v1;key=hush",
        "https://host/v1/token/hush0123456789",
        "https://host/hush0123456789abcdef0123456789abcdef01234567/v1",
    ],
)
def test_an_address_with_a_key_is_refused_and_not_shown(address):
    for key in ("evaluate.endpoint.base_url", "train.advanced.vllm.server_base_url"):
        with pytest.raises(InputError, match="holds a user, password or key") as raised:
            load_settings(overrides=[f"{key}={address}"])
        assert "hush" not in str(raised.value) and "aB3d" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "host/v1", "ftp://host", "http://", "http://[::1", "http://host:port/v1"],
)
def test_an_address_needs_scheme_and_host(address):
    with pytest.raises(InputError, match="expected an address such as http://localhost:8000/v1"):
        load_settings(overrides=[f"evaluate.endpoint.base_url='{address}'"])


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:8000",
        "http://[::1]:8000/v1",
        "https://j4wd7noptrqvb04f.us-east-1.aws.endpoints.huggingface.cloud/v1",
        "https://gateway.ai.cloudflare.com/v1/0123456789abcdef0123456789abcdef/gate/openai",
        "https://host/openai/deployments/gpt-4o-mini?api-version=2024-10-21",
        "https://host/models/meta-llama/Meta-Llama-3-70B-Instruct/v1",
    ],
)
def test_usual_addresses_are_taken(address):
    assert EndpointSettings(base_url=address).base_url == address


@pytest.mark.parametrize(
    "override",
    [
        "evaluate.endpoint.model=sk-proj-hush1234",
        "evaluate.judges=[endpoint=sk-HUSHhush]",
        "evaluate.advanced.sources.advbench=https://user:hush@host/file.csv",
        "model.template_kwargs.key=hf_hush0123456789abcdef",
        "prompts.harmful=https://user:hush@host/file.csv",
        "train.max_steps=sk-hush-1234HUSH",
        "evaluate.endpoint=sk-hush-1234HUSH",
        "model.id=$KEY",
        "sk-hush-1234HUSH",
    ],
)
def test_a_key_in_any_setting_is_refused_and_not_shown(override, monkeypatch):
    """One of our environment too, however it looks."""
    monkeypatch.setenv("JUDGE_API_KEY", "hush-hush-hush")
    with pytest.raises(InputError) as raised:
        load_settings(overrides=[override.replace("$KEY", "hush-hush-hush")])
    assert "hush" not in str(raised.value).lower()
    for word in (
        "sk-learn-style-prompts-2024.csv",
        "hf_datasets/advbench_v2",
        "Risk-averse",
        "eyJ",
    ):
        assert load_settings(overrides=[f"model.id={word}"]).model.id == word


def test_the_path_of_a_key_is_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGNING_KEY", str(tmp_path))
    assert load_settings(overrides=[f"model.id={tmp_path}"]).model.id == str(tmp_path)
