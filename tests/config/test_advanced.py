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


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "_key2", "JUDGE", "sky_key"])
def test_names_of_variables_are_taken(name):
    assert EndpointSettings(api_key_env=name).api_key_env == name
