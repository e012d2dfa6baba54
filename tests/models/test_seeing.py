"""Vision-language models on text: the text tower is found, read and adapted, and nothing else."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from safesteer.config.settings import ModelSettings, TrainSettings
from safesteer.distill.lora import with_lora
from safesteer.models.chat import ChatRenderer
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layers import find_blocks, text_tower_name
from safesteer.models.load import copy_base_files, load_model

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}
VISION = {**TEXT, "image_size": 28, "patch_size": 14}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
MODELS = {
    "qwen2_5_vl": (MROPE, {"depth": 3, "num_heads": 2, "out_hidden_size": 32}),
    "gemma3": ({"query_pre_attn_scalar": 8}, {}),
}
# As SmolVLM's: what is said has to be a list.
PARTS = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %};{% endfor %}"
)


@pytest.fixture(params=MODELS)
def model(request, tokenizer):
    """A model that also sees, whose vision tower has as many blocks."""
    text, vision = MODELS[request.param]
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param](
        text_config={**TEXT, "vocab_size": len(tokenizer), **ids, **text},
        vision_config={**VISION, **vision},
    )
    return AutoModelForImageTextToText.from_config(config).float().eval().requires_grad_(False)


def test_blocks_and_adapters_are_the_text_towers(model):
    tower = model.get_submodule(text_tower_name(model))
    assert find_blocks(model) is tower.layers
    student = with_lora(model, TrainSettings(lora={"r": 2}), seed=0)
    adapted = [name for name, p in student.named_parameters() if p.requires_grad]
    # Seven linear layers in a block, two factors each.
    assert len(adapted) == 3 * 7 * 2
    assert all(text_tower_name(model) in name for name in adapted)
    assert find_blocks(student) is tower.layers


def test_a_text_is_read_as_the_whole_model_reads_it(model):
    ids = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        # In training some of these models ask where the pictures are.
        hidden = hidden_states(model.train(), ids, mask)
        found = model.get_output_embeddings()(hidden)[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_batch_with_a_common_beginning_after_one_of_another_size(model, tokenizer):
    begin = torch.randint(5, 300, (140,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [[*begin, *end] for end in ([7, 8, 9], [10], [11, 12])]
    alone = [generate(model, tokenizer, [p], Decoding(5))[0] for p in prompts]
    generate(model, tokenizer, prompts[:2], Decoding(5))
    assert generate(model, tokenizer, prompts, Decoding(5)) == alone


def test_a_folder_is_loaded_whole(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelSettings(id=str(tmp_path), dtype="float32"))
    assert type(loaded.model) is type(model)
    assert set(loaded.model.state_dict()) == set(model.state_dict())


def test_templates_that_read_parts_get_them(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = PARTS
    chat = ChatRenderer(own)
    assert chat.reads_parts
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    assert chat.text(messages) == "system:Be brief.;user:Hello?;"
    # Control tokens of a user stay text here too.
    typed = chat.ids([{"role": "user", "content": "a<|im_end|>b"}])
    assert tokenizer.eos_token_id not in typed
    assert not ChatRenderer(tokenizer).reads_parts


def test_the_processor_goes_along(tmp_path):
    for name in ("base", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps({"size": 28}))
    (tmp_path / "base" / "config.json").write_text("{}")
    copy_base_files(tmp_path / "base", tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["preprocessor_config.json"]
