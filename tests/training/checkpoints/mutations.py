"""Reads mutated checkpoint files, one after the other, in this process: a crash ends it.

    python mutations.py FOLDER COUNT

Prints a JSON line per file: kind, "refused", "equal" or "other", and the process's peak memory.
"""

import io
import json
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from conftest import tiny_spec
from safetensors.torch import save_file

from m2kit.config import ModelSpec
from m2kit.errors import M2KitError
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import read_checkpoint

SPEC = tiny_spec()
UNTOLD = {"heads": SPEC.transformer.heads, "grid": SPEC.transformer.grid}


class Exploit:
    def __reduce__(self):
        return open, ("exploited", "w")


def records(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archive_of(items, compression=zipfile.ZIP_STORED):
    """A zip of (name, bytes) with right CRC-32s."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two records of one name are wanted
        for name, data in items:
            archive.writestr(name, data)
    return file.getvalue()


def with_pickle(data, content):
    return archive_of([(n, content if n.endswith("data.pkl") else d) for n, d in records(data)])


def flip(data, random, count):
    changed = bytearray(data)
    for _ in range(count):
        changed[random.integers(len(changed))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def flip_bits(data, random):
    return flip(data, random, int(random.integers(1, 9)))


def flip_bits_of_the_directory(data, random):
    start = data.index(b"PK\x01\x02")
    return data[:start] + flip(data[start:], random, int(random.integers(1, 5)))


def truncate(data, random):
    return data[: random.integers(len(data))]


def overwrite_a_stretch(data, random):
    start = int(random.integers(len(data)))
    return data[:start] + random.bytes(int(random.integers(1, 4096))) + data[start + 64 :]


def prefix(data, random):
    return random.bytes(int(random.integers(1, 100))) + data


def drop_a_record(data, random):
    items = records(data)
    del items[random.integers(len(items))]
    return archive_of(items)


def rename_a_record(data, random):
    items = records(data)
    index = random.integers(len(items))
    tricks = ["../../etc/x", "/tmp/x", "archive\\..\\x", "x", items[0][0], "archive/data/999", " "]
    items[index] = (tricks[random.integers(len(tricks))], items[index][1])
    return archive_of(items)


def move_to_another_folder(data, random):
    return archive_of([(f"../{name}", d) for name, d in records(data)])


def resize_a_record(data, random):
    items = records(data)
    index = random.integers(len(items))
    name, content = items[index]
    keep = int(random.integers(len(content) + 1))
    items[index] = (name, content[:keep] if random.integers(2) else content + bytes(keep + 1))
    return archive_of(items)


def swap_two_records(data, random):
    items = records(data)
    a, b = random.choice(len(items), 2, replace=False)
    (name_a, data_a), (name_b, data_b) = items[a], items[b]
    items[a], items[b] = (name_a, data_b), (name_b, data_a)
    return archive_of(items)


def compress(data, random):
    return archive_of(records(data), zipfile.ZIP_DEFLATED)


def bomb(data, random):
    return archive_of([*records(data), ("archive/zeros", bytes(10**8))], zipfile.ZIP_DEFLATED)


def mutate_the_pickle(data, random):
    (content,) = [d for n, d in records(data) if n.endswith("data.pkl")]
    return with_pickle(data, flip(content, random, int(random.integers(1, 4))))


def insert_into_the_pickle(data, random):
    (content,) = [d for n, d in records(data) if n.endswith("data.pkl")]
    at = int(random.integers(len(content)))
    parts = [
        b"cos\nsystem\n(S'touch exploited'\ntR",
        b"\x80\x02",
        b"(",
        b"0",
        b"\x8a\xff",
        b"2" * 9,
    ]
    return with_pickle(data, content[:at] + parts[random.integers(len(parts))] + content[at:])


def nest_deeply(data, random):
    depth = int(random.integers(1000, 100_000))
    kind = int(random.integers(3))
    opened, closed = [(b"]" * depth, b"a" * (depth - 1)), (b"}" * depth, b""), (b"(" * depth, b"")][
        kind
    ]
    return with_pickle(data, b"\x80\x02" + opened + closed + b".")


def with_notes(data, notes):
    content = torch.load(io.BytesIO(data), weights_only=True)
    file = io.BytesIO()
    torch.save(content | {"m2kit": {"training": {"x": notes}}}, file)
    return file.getvalue()


def nest_endlessly(data, random):
    """Forty lists, each of two times the one before: a terabyte if anything copies it."""
    notes = ["x"]
    for _ in range(40):
        notes = [notes, notes]
    return with_notes(data, notes)


def repeat_a_long_note(data, random):
    return with_notes(data, [random.bytes(500_000).hex()] * 20_000)


def ask_for_memory(data, random):
    """bytearray(10^10): torch's weights-only unpickler allows it."""
    return with_pickle(data, b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R.")


def append_an_end(data, random):
    """zipfile then sees no archive, torch one; with or without a flipped bit."""
    changed = flip(data, random, 1) if random.integers(2) else data
    return changed + [b"PK\x05\x06", b"PK\x05\x06" + bytes(18), b"\0"][random.integers(3)]


def change_the_tensors(data, random):
    content = torch.load(io.BytesIO(data), weights_only=True)
    state = content["state_dict"]
    name = list(state)[random.integers(len(state))]
    tensor = state[name]
    changes = [
        lambda: state.pop(name),
        lambda: state.update({f"{name}.x": state.pop(name)}),
        lambda: state.update({name: torch.cat([tensor, tensor])}),
        lambda: state.update({name: tensor.new_zeros(0)}),
        lambda: state.update({name: tensor[None]}),
        lambda: tensor.view(-1)[:1].fill_(float("nan")),
        lambda: tensor.view(-1)[-1:].fill_(float("-inf")),
        lambda: state.update({name: tensor.to(torch.complex64)}),
        lambda: state.update({name: torch.zeros(1).expand(2**20, 2**20)}),
        lambda: state.update({name: torch.zeros(1).expand(2**20, *[2] * (tensor.dim() - 1))}),
        lambda: state.update({name: torch.zeros(1).expand(*tensor.shape[:-1], 2**40)}),
        lambda: state.update({name: torch.zeros(1).expand(2**38, *tensor.shape[1:])}),
        lambda: state.update(
            {f"encoder.down.{n}.block.0.conv1.weight": tensor for n in range(999)}
        ),
        lambda: state.update({f"encoder.mid_block.{n}.norm1.bias": tensor for n in (99, 9999)}),
        lambda: state.update({name: tensor.to_sparse()}),
        lambda: state.update({name: torch.empty(tensor.shape, device="meta")}),
        lambda: state.update({name: "text"}),
        lambda: state.update({name: Exploit()}),
        lambda: content.update({"m2kit": {"spec": torch.ones(3)}}),
        lambda: content.update({"state_dict": [state]}),
    ]
    changes[random.integers(len(changes))]()
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def declare_a_large_storage(data, random):
    """A pickle that says a storage has more values than its record."""
    (content,) = [d for n, d in records(data) if n.endswith("data.pkl")]
    places = [i for i in range(len(content) - 3) if content[i : i + 4] == b"cpuq"]
    place = places[random.integers(len(places))]
    at = content.index(b"K", place) if b"K" in content[place : place + 12] else place
    return with_pickle(data, content[:at] + b"J\xff\xff\xff\x7f" + content[at + 2 :])


def exploit(data, random):
    protocol = int(random.integers(5))
    evil = pickle.dumps({"state_dict": {"encoder.x": Exploit()}}, protocol=protocol)
    return evil if random.integers(2) else with_pickle(data, evil)


def lengthen_the_header(data, random):
    length = int(random.integers(2**62)) if random.integers(2) else int(random.integers(len(data)))
    return length.to_bytes(8, "little") + data[8:]


def huge_shapes(data, random):
    header = {"encoder.x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def flip_bits_of_the_header(data, random):
    end = 8 + int.from_bytes(data[:8], "little")
    return flip(data[:end], random, int(random.integers(1, 4))) + data[end:]


ANY = [flip_bits, truncate, overwrite_a_stretch, prefix]
# Kinds after which a file that loads holds the very weights it held before: CRC-32 tells.
CHECKED = [*ANY, flip_bits_of_the_directory, drop_a_record, rename_a_record, append_an_end]
ZIP = [
    *CHECKED, move_to_another_folder, resize_a_record, swap_two_records, compress, bomb,
    mutate_the_pickle, insert_into_the_pickle, nest_deeply, nest_endlessly, repeat_a_long_note,
    ask_for_memory, change_the_tensors, change_the_tensors, declare_a_large_storage, exploit,
]  # fmt: skip
SAFETENSORS = [*ANY, lengthen_the_header, huge_shapes, flip_bits_of_the_header]


def outcome(path, expected, overrides):
    try:
        tensors = read_checkpoint(path, overrides=overrides).tensors()
    except M2KitError as error:
        assert str(error).strip()
        return "refused"
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in expected.items()}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    same = all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    return "equal" if same else "other"


def peak_bytes():
    """Of this program; getrusage would count what its parent held before it began."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def source(folder, form, spec):
    """A whole file of a form; returns its path."""
    path = folder / "whole"
    write_random_checkpoint(path, spec, 0)
    state = torch.load(path, weights_only=True)["state_dict"]
    if form == "pickle":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    if form == "safetensors":
        save_file(state, path)
    return path


def main(folder, count):
    kinds = []
    for form, spec, mutations in (
        ("ar zip", SPEC, ZIP),
        ("tokenizer zip", ModelSpec(SPEC.tokenizer, None), CHECKED + [change_the_tensors] * 3),
        ("pickle", SPEC, ANY),
        ("safetensors", SPEC, SAFETENSORS),
    ):
        path, overrides = source(folder, form, spec), UNTOLD if spec is SPEC else {}
        expected = read_checkpoint(path, overrides=overrides).tensors()
        assert outcome(path, expected, overrides) == "equal"
        kinds += [(form, path.read_bytes(), kind, expected, overrides) for kind in mutations]
    for number in range(count):
        form, data, kind, expected, overrides = kinds[number % len(kinds)]
        random = np.random.default_rng(number)
        (folder / "mutated").write_bytes(kind(data, random))
        told = {} if random.integers(4) == 0 else overrides  # without heads the shapes come first
        result = {
            "number": number,
            "form": form,
            "kind": kind.__name__,
            "checked": "zip" in form and kind in CHECKED,
            "outcome": outcome(folder / "mutated", expected, told),
            "peak_bytes": peak_bytes(),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
