import io
import pickle
from collections import OrderedDict

import pytest
import torch

from m2kit.training.checkpoints.pickle_scan import refused_name


def scan(data):
    return refused_name(io.BytesIO(data))


class Calls:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_more_than_weights_is_named_in_every_protocol(protocol):
    for function, name in ((eval, "eval"), (bytearray, "bytearray"), (torch.nn.Linear, "Linear")):
        data = pickle.dumps([OrderedDict(a=1), Calls(function, 3)], protocol=protocol)
        assert scan(data).split(".")[-1] == name
    twice = [Calls(bytearray, 3), Calls(bytearray, 4)]  # the second name comes from the memo
    assert scan(pickle.dumps(twice, protocol=protocol)).split(".")[-1] == "bytearray"


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_pass(protocol):
    content = {"a": [1, 2.5, "text", None, True, (1,)], "b": OrderedDict(x=torch.float16)}
    assert scan(pickle.dumps(content, protocol=protocol)) is None


@pytest.mark.parametrize(
    "name",
    ["torch UntypedStorage", "torch._utils _rebuild_sparse_tensor", "torch load", "torch hub",
     "torch._utils _rebuild_tensor_v2x", "os system", "torch float32.x"],
)  # fmt: skip
def test_names_match_exactly(name):
    module, attribute = name.split(" ")
    assert scan(f"c{module}\n{attribute}\n.".encode()) == f"{module}.{attribute}"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02", b"(lp0\n"])
def test_what_is_no_whole_pickle_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"pickle|opcode"):
        scan(data)
