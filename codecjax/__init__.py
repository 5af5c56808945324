"""LLM weights kept compressed in device memory, decoded by Pallas kernels, cached by plan.

    model = codecjax.load(folder, codec="window")
    codecjax.logits(model, tokens)
    for token in codecjax.generate(model, prompt, max_new_tokens=100, budget_bytes=0): ...
    codecjax.save(model, path)

See `codecjax.tiles` for the names of dimensions in every docstring.
"""

from codecjax import cache
from codecjax.codecs import encode
from codecjax.errors import UserError
from codecjax.generate import generate, logits
from codecjax.io.checkpoint import save
from codecjax.io.load import load
from codecjax.models.model import Model
from codecjax.operations import decode, matmul
from codecjax.tiles import TiledMatrix

__version__ = "0.1.0"

__all__ = [
    "Model",
    "TiledMatrix",
    "UserError",
    "__version__",
    "cache",
    "decode",
    "encode",
    "generate",
    "load",
    "logits",
    "matmul",
    "save",
]
