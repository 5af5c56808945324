"""What a Llama-family model is made of, read from and written as a Hugging Face config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from codecjax.errors import UserError

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"
ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of pretraining.

    Attributes:
      kind: "linear" divides every frequency by `factor`; "llama3" divides those whose
        wavelength exceeds `original_context / low_frequency_factor` positions, keeps those
        below `original_context / high_frequency_factor`, and blends in between.
      factor: the divisor, at least 1.
      low_frequency_factor: llama3 only.
      high_frequency_factor: llama3 only, greater than `low_frequency_factor`.
      original_context: llama3 only, context length of pretraining in tokens.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a Llama-family decoder.

    Attributes:
      vocab_size: V.
      hidden_size: D.
      intermediate_size: F.
      layers: L.
      heads: H, query heads.
      kv_heads: KV, key/value heads; divides H.
      head_dim: HD, even.
      context: C, the most positions of one sequence.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: None for plain rotary embeddings.
      rms_eps: added to the mean square in RMSNorm.
      tied: the head is the embedding.
      bos_id: token id that begins a text, or None.
      eos_ids: token ids that end a text, maybe none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    tied: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(
                f"num_attention_heads {self.heads} is not a multiple of num_key_value_heads "
                f"{self.kv_heads}: correct config.json"
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim {self.head_dim} is odd, and rotary embeddings turn pairs: "
                "correct config.json"
            )

    @classmethod
    def from_huggingface(cls, raw: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the contents of a config.json.

        Fields that the file leaves out get the defaults of `transformers`, except the sizes
        V, D, F, L and H, which it must name.

        Raises:
          UserError: another architecture, a feature that this package does not have, a missing
            field, a value of the wrong type, or sizes that do not fit each other.
        """
        _check_architecture(raw)
        _check_features(raw)
        hidden_size, heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
        context = _size(raw, "max_position_embeddings", 2048)
        if raw.get("head_dim") is None and hidden_size % heads:
            raise UserError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads} and "
                "there is no head_dim: correct config.json"
            )
        rope_theta, rope_scaling = _rope(raw, context)
        eos = raw.get("eos_token_id", 2)
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        bos = raw.get("bos_token_id", 1)
        return cls(
            vocab_size=_size(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(raw, "intermediate_size"),
            layers=_size(raw, "num_hidden_layers"),
            heads=heads,
            kv_heads=_size(raw, "num_key_value_heads", heads),
            head_dim=_size(raw, "head_dim", hidden_size // heads),
            context=context,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            rms_eps=_number(raw, "rms_norm_eps", 1e-6),
            tied=_boolean(raw, "tie_word_embeddings", False),
            bos_id=None if bos is None else _token_id("bos_token_id", bos),
            eos_ids=tuple(_token_id("eos_token_id", each) for each in eos_ids),
        )

    def to_huggingface(self) -> dict[str, Any]:
        """Contents of a config.json that `from_huggingface` and `transformers` read back."""
        scaling: dict[str, Any] | None = None
        if self.rope_scaling is not None:
            scaling = {"rope_type": self.rope_scaling.kind, "factor": self.rope_scaling.factor}
            if self.rope_scaling.kind == "llama3":
                scaling |= {
                    "low_freq_factor": self.rope_scaling.low_frequency_factor,
                    "high_freq_factor": self.rope_scaling.high_frequency_factor,
                    "original_max_position_embeddings": self.rope_scaling.original_context,
                }
        eos: int | list[int] | None = list(self.eos_ids) or None
        if len(self.eos_ids) == 1:
            eos = self.eos_ids[0]
        return {
            "architectures": [ARCHITECTURE],
            "attention_bias": False,
            "bos_token_id": self.bos_id,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "model_type": MODEL_TYPE,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.rms_eps,
            "rope_scaling": scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
        }


def tinyllama() -> LlamaConfig:
    """TinyLlama-1.1B: 22 layers of 7 matrices and an untied head, 155 matrices."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        layers=22,
        heads=32,
        kv_heads=4,
        head_dim=64,
        context=2048,
        rope_theta=10000.0,
        rms_eps=1e-5,
        tied=False,
        bos_id=1,
        eos_ids=(2,),
    )


def _check_architecture(raw: Mapping[str, Any]) -> None:
    supported = f"only {ARCHITECTURE} (model_type {MODEL_TYPE!r}) is supported"
    architectures = raw.get("architectures")
    if architectures is not None and architectures != [ARCHITECTURE]:
        named = architectures if isinstance(architectures, list) else [architectures]
        raise UserError(
            f"unknown architecture {', '.join(str(name) for name in named) or 'none'} in "
            f"config.json: {supported}"
        )
    model_type = raw.get("model_type")
    if model_type is None and architectures is None:
        raise UserError(f"config.json names neither architectures nor model_type: {supported}")
    if model_type not in (None, MODEL_TYPE):
        raise UserError(f"unknown architecture {model_type!r} in config.json: {supported}")


def _check_features(raw: Mapping[str, Any]) -> None:
    for field in ("attention_bias", "mlp_bias"):
        if _boolean(raw, field, False):
            raise UserError(
                f"config.json has {field} true, which is not supported: "
                "use a model whose projections have no biases"
            )
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(
            f"config.json has hidden_act {activation!r}, which is not supported: "
            "use a model with 'silu'"
        )
    if raw.get("quantization_config") is not None:
        raise UserError(
            "config.json has a quantization_config, which is not supported: "
            "use the bfloat16, float16 or float32 weights of the model"
        )


def _rope(raw: Mapping[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling from `rope_scaling` and `rope_theta`, or from `rope_parameters`."""
    # transformers takes rope_scaling where both are given.
    key = "rope_scaling" if raw.get("rope_scaling") is not None else "rope_parameters"
    rope = raw.get(key)
    if rope is None:
        rope = {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{key} in config.json is {rope!r}: write it as an object or null")
    theta = _number(rope if "rope_theta" in rope else raw, "rope_theta", 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UserError(
            f"{key} in config.json has type {kind!r}, which is not supported: "
            f"use a model with one of {', '.join(ROPE_TYPES)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{key} in config.json has a partial_rotary_factor, which is not supported: "
            "use a model that rotates whole heads"
        )
    if kind == "default":
        return theta, None
    factor = _number(rope, "factor")
    if factor < 1:
        raise UserError(f"factor {factor} of {key} in config.json is below 1: correct it")
    if kind == "linear":
        return theta, RopeScaling(kind, factor)
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if low >= high:
        raise UserError(
            f"low_freq_factor {low} of {key} in config.json is not below high_freq_factor {high}: "
            "correct them"
        )
    original = _size(rope, "original_max_position_embeddings", context)
    return theta, RopeScaling(kind, factor, low, high, original)


def _present(raw: Mapping[str, Any], field: str, default: Any) -> Any:
    value = raw.get(field)
    if value is None:
        value = default
    if value is None:
        raise UserError(f"config.json has no {field}: add it")
    return value


def _size(raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = _present(raw, field, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{field} in config.json is {value!r}: write a positive integer")
    return value


def _number(raw: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = _present(raw, field, default)
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not math.isfinite(value) or value <= 0:
        raise UserError(f"{field} in config.json is {value!r}: write a positive number")
    return float(value)


def _boolean(raw: Mapping[str, Any], field: str, default: bool) -> bool:
    value = _present(raw, field, default)
    if not isinstance(value, bool):
        raise UserError(f"{field} in config.json is {value!r}: write true or false")
    return value


def _token_id(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{field} in config.json is {value!r}: write a token id")
    return value
