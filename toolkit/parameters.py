"""Parameter counts, and weights read per position, from a spec alone, without the model."""

from __future__ import annotations

from m2kit.config import ModelSpec, TokenizerSpec, TransformerSpec


def parameter_counts(spec: ModelSpec) -> dict[str, int]:
    """Parameters of encoder and decoder, and of the inter and intra transformer.

    The sub-token embeddings, which both step graphs share, count with the inter transformer;
    final norm and heads with the intra transformer.
    """
    counts = {"encoder": _encoder(spec.tokenizer), "decoder": _decoder(spec.tokenizer)}
    if spec.transformer:
        counts |= _transformer(spec.transformer)
    return counts


def weights_per_position(spec: TransformerSpec) -> int:
    """Weight values that decoding one position reads, whatever the batch.

    The inter step once and the intra step, all heads included, for each sub-token; of the embedding
    tables only the rows that are looked up. Times the bytes of a value, divided by the memory's
    bandwidth, this is the least time a position can take.
    """
    layer = _layer(spec)
    inter = spec.inter_layers * layer + len(spec.bits) * spec.width
    intra = spec.intra_layers * layer + spec.width + sum(spec.vocabularies) * spec.width
    return inter + len(spec.bits) * intra + (len(spec.bits) - 1) * spec.width


def _conv(channels_in: int, channels_out: int, kernel: int = 3, bias: bool = True) -> int:
    return channels_in * channels_out * kernel**2 + (channels_out if bias else 0)


def _blocks(channels_in: int, channels_out: int, count: int) -> int:
    total = 0
    for _ in range(count):
        total += 2 * channels_in + 2 * channels_out  # the two norms
        total += _conv(channels_in, channels_out, bias=False)
        total += _conv(channels_out, channels_out, bias=False)
        if channels_in != channels_out:
            total += channels_in * channels_out
        channels_in = channels_out
    return total


def _encoder(spec: TokenizerSpec) -> int:
    channels, blocks = spec.channels, spec.blocks_per_level
    entering = (spec.base_channels, *channels[:-1])
    total = _conv(3, spec.base_channels, bias=False)
    total += sum(_blocks(a, b, blocks) for a, b in zip(entering, channels, strict=True))
    total += sum(_conv(width, width) for width in channels[:-1])
    total += _blocks(channels[-1], channels[-1], blocks) + 2 * channels[-1]
    return total + _conv(channels[-1], spec.code_bits, kernel=1)


def _decoder(spec: TokenizerSpec) -> int:
    channels, blocks = spec.channels, spec.blocks_per_level
    entering = (*channels[1:], channels[-1])
    total = _conv(spec.code_bits, channels[-1]) + _blocks(channels[-1], channels[-1], blocks)
    total += sum(_blocks(a, b, blocks) for a, b in zip(entering, channels, strict=True))
    total += sum(_conv(width, 4 * width) for width in channels[1:])
    if spec.adaptive_norm:
        total += sum(2 * (spec.code_bits + 1) * width for width in entering)
    return total + 2 * channels[0] + _conv(channels[0], 3)


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
