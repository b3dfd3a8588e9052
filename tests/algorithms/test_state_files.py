"""The state of a training through a real safetensors file: all of it comes back exactly."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.state_files import pack, unpack
from through_a_file import through_a_file

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
)


def typed(state: Any) -> Any:
    """The state with all its types, since 1 == 1.0 == True."""
    if isinstance(state, dict):
        return "dict", [(typed(key), typed(value)) for key, value in state.items()]
    if isinstance(state, list | tuple):
        return type(state).__name__, [typed(part) for part in state]
    return type(state).__name__, repr(state)


@given(STATES)
def test_nested_states_come_back_exactly(state: object):
    tensors, text = pack(state)
    assert not tensors
    assert typed(unpack(tensors, text)) == typed(state)


def test_infinity_and_nan_come_back():
    back = unpack(*pack([math.inf, -math.inf, math.nan]))
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_come_back_from_a_file(dtype: torch.dtype, tmp_path: Path):
    tensor = torch.randn(3, 5).mul(3).to(dtype)
    back = through_a_file({0: [tensor]}, tmp_path / "state.safetensors")[0][0]
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_tensors_without_axes_or_elements_come_back(tmp_path: Path):
    state = (torch.tensor(2.5), torch.empty(0, 3))
    one, none = through_a_file(state, tmp_path / "state.safetensors")
    assert one.shape == ()
    assert one.item() == 2.5
    assert none.shape == (0, 3)


def test_tensors_that_share_memory_or_are_not_contiguous_come_back(tmp_path: Path):
    tensor = torch.arange(6.0).reshape(2, 3)
    state = [tensor, tensor, tensor.T, tensor[0].expand(4, 3)]
    back = through_a_file(state, tmp_path / "state.safetensors")
    assert all(torch.equal(one, other) for one, other in zip(back, state, strict=True))


def test_a_packed_state_stays_as_it_was_when_the_training_goes_on():
    tensor = torch.zeros(3)
    tensors, text = pack({"x": tensor})
    tensor.add_(1)
    assert unpack(tensors, text)["x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("state", "mistake"),
    [
        ({"a": [{1, 2}]}, r"state\['a'\]\[0\] is a set"),
        ({"dtype": torch.float32}, r"state\['dtype'\] is a dtype"),
        ([OrderedDict(a=1)], r"state\[0\] is a OrderedDict"),
        ((torch.Size([1]),), r"state\[0\] is a Size"),
        ({2.5: 1}, r"state has the key 2\.5"),
        ({"a": {True: 1}}, r"state\['a'\] has the key True"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused_and_named(state: object, mistake: str):
    with pytest.raises(TrainingError, match=mistake):
        pack(state)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("{", "Expecting property name"),
        ('{"tensor": "tensor.0"}', "no tensor 'tensor.0'"),
        ('{"set": []}', "an object of 'set'"),
        ('{"tuple": [], "dict": []}', "an object of 2 members"),
        ('{"dict": [1]}', "damaged"),
        ('{"tensor": []}', "damaged"),
    ],
)
def test_a_damaged_text_is_refused(text: str, mistake: str):
    with pytest.raises(TrainingError, match=mistake):
        unpack({}, text)
