"""A whole model in PyTorch, and its tensors under their canonical names.

Canonical are encoder.*, decoder.* and transformer.*, whatever prefix a file gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from m2kit.config import ModelSpec
from m2kit.families.family import FAMILIES
from m2kit.references import resolve
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.models.transformer import Transformer

TRANSFORMER = "transformer."


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A model in PyTorch: the tokenizer, and the transformer where there is one."""

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: Transformer | None

    def tensors(self) -> dict[str, Tensor]:
        """Canonical name -> tensor."""
        named = dict(self.tokenizer.state_dict())
        if self.transformer is not None:
            state = self.transformer.state_dict()
            named |= {TRANSFORMER + name: tensor for name, tensor in state.items()}
        return named


def model_from_tensors(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> TorchModel:
    """The model of a spec with these tensors (canonical name -> any float), in evaluation mode.

    float32 tensors are used where they lie, others are copied.
    """
    model = _empty(spec)
    for prefix, module in (("", model.tokenizer), (TRANSFORMER, model.transformer)):
        if module is not None:
            state = {name: tensors[prefix + name].float() for name in module.state_dict()}
            module.load_state_dict(state, assign=True)
            module.eval().requires_grad_(False)
    return model


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor a model of this spec has."""
    return {name: tuple(tensor.shape) for name, tensor in _empty(spec).tensors().items()}


def _empty(spec: ModelSpec) -> TorchModel:
    """The model without values."""
    with torch.device("meta"):
        tokenizer = resolve(FAMILIES[spec.tokenizer.family].model)(spec.tokenizer)
        transformer = Transformer(spec.transformer) if spec.transformer else None
        return TorchModel(spec, tokenizer, transformer)
