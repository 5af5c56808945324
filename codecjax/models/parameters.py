"""The one table of a Llama's weights: their names in Hugging Face files, in the parameter tree,
and in reports.

The parameter tree is {"embedding": [V, D], "layers_0": {"attention_norm": [D], "query": ...},
..., "final_norm": [D], "head": [V, D]}; tied models have no "head", and multiply by the embedding
in its place. Projections are matrices [OUT, K]; layers hold them in the order in which a step
uses them.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from codecjax.models.config import LlamaConfig

EMBEDDING = "embedding"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One weight of a model.

    Attributes:
      path: keys that lead to it in the parameter tree.
      huggingface: its tensor name in Hugging Face files.
      name: its name in reports, like "layers.3.mlp.down".
      shape: [OUT, K] of a projection, [V, D] of the embedding, [D] of a norm.
      projection: whether the model's codec stores it.
    """

    path: tuple[str, ...]
    huggingface: str
    name: str
    shape: tuple[int, ...]
    projection: bool


def parameters(config: LlamaConfig) -> tuple[Parameter, ...]:
    """Every weight of the model, in the order in which a step uses them."""
    vocab, hidden, inner = config.vocab_size, config.hidden_size, config.intermediate_size
    queries = config.heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    layer: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
        ("attention_norm", "input_layernorm", "attention.norm", (hidden,)),
        ("query", "self_attn.q_proj", "attention.query", (queries, hidden)),
        ("key", "self_attn.k_proj", "attention.key", (keys, hidden)),
        ("value", "self_attn.v_proj", "attention.value", (keys, hidden)),
        ("output", "self_attn.o_proj", "attention.output", (hidden, queries)),
        ("mlp_norm", "post_attention_layernorm", "mlp.norm", (hidden,)),
        ("gate", "mlp.gate_proj", "mlp.gate", (inner, hidden)),
        ("up", "mlp.up_proj", "mlp.up", (inner, hidden)),
        ("down", "mlp.down_proj", "mlp.down", (hidden, inner)),
    )
    embedding = (vocab, hidden)
    result = [Parameter((EMBEDDING,), "model.embed_tokens.weight", EMBEDDING, embedding, False)]
    for index in range(config.layers):
        result += [
            Parameter(
                path=(f"layers_{index}", key),
                huggingface=f"model.layers.{index}.{tensor}.weight",
                name=f"layers.{index}.{name}",
                shape=shape,
                projection=len(shape) == 2,
            )
            for key, tensor, name, shape in layer
        ]
    result.append(Parameter(("final_norm",), "model.norm.weight", "final_norm", (hidden,), False))
    if not config.tied:
        result.append(Parameter(("head",), "lm_head.weight", "head", embedding, True))
    return tuple(result)


def multiplied(config: LlamaConfig) -> tuple[Parameter, ...]:
    """The weights that a step multiplies activations by, in the order of use."""
    embedding, *others = parameters(config)
    projections = tuple(parameter for parameter in others if parameter.projection)
    return (*projections, embedding) if config.tied else projections


def sharing_inputs(config: LlamaConfig) -> tuple[tuple[Parameter, ...], ...]:
    """The projections in the order of use, those that multiply the same activations together."""
    groups: list[tuple[Parameter, ...]] = []
    for parameter in parameters(config):
        if not parameter.projection:
            continue
        if parameter.path[-1] in ("key", "value", "up"):
            groups[-1] += (parameter,)
        else:
            groups.append((parameter,))
    return tuple(groups)


def to_tree(config: LlamaConfig, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Arranges weights, keyed by Hugging Face tensor name, as the parameter tree."""
    tree: dict[str, Any] = {}
    for parameter in parameters(config):
        node = tree
        for key in parameter.path[:-1]:
            node = node.setdefault(key, {})
        node[parameter.path[-1]] = weights[parameter.huggingface]
    return tree


def layers(config: LlamaConfig) -> tuple[tuple[Parameter, ...], ...]:
    """Every weight of the model: what comes before the layers, each layer's, what comes after."""
    by_layer = itertools.groupby(parameters(config), key=lambda parameter: parameter.path[:-1])
    return tuple(tuple(group) for _, group in by_layer)


def from_tree(config: LlamaConfig, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a parameter tree, keyed by Hugging Face tensor name."""
    return {parameter.huggingface: weight for parameter, weight in walk(config, tree)}


def walk(config: LlamaConfig, tree: Mapping[str, Any]) -> Iterator[tuple[Parameter, Any]]:
    """Pairs of Parameter and its weight in the parameter tree, in the order of use."""
    for parameter in parameters(config):
        yield parameter, at(tree, parameter)


def at(tree: Mapping[str, Any], parameter: Parameter) -> Any:
    """That weight of a parameter tree."""
    node: Any = tree
    for key in parameter.path:
        node = node[key]
    return node
