"""Writes tests/golden/keys: names and shapes of the published files, from the rules of the official
modules (TencentARC/SEED-Voken, b9a17ea). Imports nothing of m2kit, so that its models can be held
against the lists.

    python tests/golden/make_keys.py
"""

import re
from pathlib import Path

BASE, TOP = 128, 512  # channels after conv_in, and at the lowest resolution


def block(name, channels_in, channels_out):
    keys = {
        f"{name}.{norm}.{part}": (channels,)
        for norm, channels in (("norm1", channels_in), ("norm2", channels_out))
        for part in ("weight", "bias")
    }
    keys[f"{name}.conv1.weight"] = (channels_out, channels_in, 3, 3)
    keys[f"{name}.conv2.weight"] = (channels_out, channels_out, 3, 3)
    if channels_in != channels_out:
        keys[f"{name}.nin_shortcut.weight"] = (channels_out, channels_in, 1, 1)
    return keys


def blocks(name, channels_in, channels_out, count):
    keys = block(f"{name}.0", channels_in, channels_out)
    for index in range(1, count):
        keys |= block(f"{name}.{index}", channels_out, channels_out)
    return keys


def with_bias(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def tokenizer(multipliers, count, bits, adaptive):
    channels, last = [BASE * m for m in multipliers], len(multipliers) - 1
    keys = {"encoder.conv_in.weight": (BASE, 3, 3, 3)}
    entering = BASE
    for level, width in enumerate(channels):
        keys |= blocks(f"encoder.down.{level}.block", entering, width, count)
        if level < last:
            keys |= with_bias(f"encoder.down.{level}.downsample", width, width, 3, 3)
        entering = width
    keys |= blocks("encoder.mid_block", TOP, TOP, count)
    keys |= with_bias("encoder.norm_out", TOP)
    keys |= with_bias("encoder.conv_out", bits, TOP, 1, 1)
    keys |= with_bias("decoder.conv_in", TOP, bits, 3, 3)
    keys |= blocks("decoder.mid_block", TOP, TOP, count)
    entering = TOP
    for level in range(last, -1, -1):
        width = channels[level]
        keys |= blocks(f"decoder.up.{level}.block", entering, width, count)
        if level > 0:
            keys |= with_bias(f"decoder.up.{level}.upsample.conv1", 4 * width, width, 3, 3)
        if adaptive:
            for part in ("gamma", "beta"):
                keys |= with_bias(f"decoder.adaptive.{level}.{part}", entering, bits)
        entering = width
    keys |= with_bias("decoder.norm_out", BASE)
    return keys | with_bias("decoder.conv_out", 3, BASE, 3, 3)


def ar(width, inter, intra, ffn):
    keys = {
        "transformer.pre_emb.weight": (64, width),
        "transformer.post_emb.weight": (4096, width),
        "transformer.class_emb.embedding_table.weight": (1001, width),
    }
    for kind, count in (("spatial_blocks", inter), ("factorized_blocks", intra)):
        for index in range(count):
            name = f"transformer.{kind}.{index}"
            keys |= {
                f"{name}.attention.wqkv.weight": (3 * width, width),
                f"{name}.attention.wo.weight": (width, width),
                f"{name}.feed_forward.w1.weight": (ffn, width),
                f"{name}.feed_forward.w3.weight": (ffn, width),
                f"{name}.feed_forward.w2.weight": (width, ffn),
                f"{name}.attention_norm.weight": (width,),
                f"{name}.ffn_norm.weight": (width,),
            }
    keys |= {
        "transformer.norm.weight": (width,),
        "transformer.head.0.weight": (64, width),
        "transformer.head.1.weight": (4096, width),
    }
    first_stage = tokenizer((1, 1, 2, 2, 4), 4, 18, True)
    return keys | {f"first_stage_model.{name}": shape for name, shape in first_stage.items()}


def video(multipliers, count, bits):
    """The image tokenizer's, with a third axis in every kernel, each convolution in a module, and
    twice as many channels where time is doubled: above levels of a multiplier that is not 1."""
    keys = {}
    for name, shape in tokenizer(multipliers, count, bits, True).items():
        module, part = name.rsplit(".", 1)
        convolution = re.search(r"(conv\w*|nin_shortcut|sample)\d*$", module)
        if match := re.search(r"up\.(\d+)\.upsample", name):
            block = 4 if multipliers[int(match[1]) - 1] == 1 else 8
            shape = (shape[0] // 4 * block, *shape[1:])
        if len(shape) == 4:
            shape = (*shape[:2], shape[2], *shape[2:])
        keys[f"{module}.conv_1.{part}" if convolution else name] = shape
    return keys


MODELS = {
    "tokenizer-128": tokenizer((1, 2, 2, 4), 4, 18, True),
    "tokenizer-256": tokenizer((1, 1, 2, 2, 4), 4, 18, True),
    "tokenizer-pretrain-16384": tokenizer((1, 1, 2, 2, 4), 4, 14, True),
    "tokenizer-128-v0.1": tokenizer((1, 2, 2, 4), 2, 18, False),
    "tokenizer-256-v0.1": tokenizer((1, 1, 2, 2, 4), 2, 18, False),
    "video-128": video((1, 2, 2, 4), 4, 18),
    "ar-b": ar(1024, 24, 2, 2816),
    "ar-l": ar(1280, 36, 3, 3584),
    "ar-xl": ar(1536, 48, 4, 4096),
}

if __name__ == "__main__":
    folder = Path(__file__).parent / "keys"
    folder.mkdir(exist_ok=True)
    for model, keys in MODELS.items():
        lines = [f"{name}\t{' '.join(map(str, shape))}\n" for name, shape in sorted(keys.items())]
        (folder / f"{model}.tsv").write_text("".join(lines), encoding="utf-8")
