"""Parameter counts, and weights read per position, from a spec alone, without the model."""

from __future__ import annotations

from m2kit.config import ModelSpec, TransformerSpec


def parameter_counts(spec: ModelSpec) -> dict[str, int]:
    """Parameters of encoder and decoder, and of the inter and intra transformer.

    The sub-token embeddings, which both step graphs share, count with the inter transformer;
    final norm and heads with the intra transformer.
    """
    counts = spec.tokenizer.parameter_counts()
    if spec.transformer:
        counts |= _transformer(spec.transformer)
    return counts


def weights_per_position(spec: TransformerSpec) -> int:
    """Weight values that decoding one position needs, whatever the batch.

    The inter step once, the intra step once for each sub-token with the head that is read there,
    and of the embedding tables the rows that are looked up. Times the bytes of a value, divided by
    the memory's bandwidth, this is the least time a position can take.
    """
    layer, count = _layer(spec), spec.sub_tokens
    inter = spec.inter_layers * layer
    intra = count * (spec.intra_layers * layer + spec.width)
    rows = (2 * count - 1) * spec.width  # K for the inter step, one for each later sub-token
    return inter + intra + sum(spec.vocabularies) * spec.width + rows


def _layer(spec: TransformerSpec) -> int:
    """Attention, SwiGLU feed-forward and two norms."""
    return 4 * spec.width**2 + 3 * spec.width * spec.ffn_width + 2 * spec.width


def _transformer(spec: TransformerSpec) -> dict[str, int]:
    layer = _layer(spec)
    tokens = sum(spec.vocabularies) * spec.width
    classes = (spec.classes + 1) * spec.width
    return {
        "inter transformer": spec.inter_layers * layer + tokens + classes,
        "intra transformer": spec.intra_layers * layer + spec.width + tokens,
    }
