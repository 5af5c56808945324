import pytest
from small_model import CONFIG, byte_tokenizer, random_weights

from codecjax.io.huggingface import write_folder


@pytest.fixture
def folder(tmp_path):
    """A folder with a config.json, one model.safetensors, a tokenizer.json and SHA256SUMS."""
    path = tmp_path / "model"
    write_folder(path, CONFIG, random_weights(CONFIG), byte_tokenizer())
    return path
