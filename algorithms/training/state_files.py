"""The state of a training as tensors and one JSON text: what a safetensors file can hold.

Nested dicts, lists and tuples of tensors, numbers, truth values, texts and None come back exactly:
tuples as tuples, whole numbers as keys, floats to the last bit, tensors in their dtype. No pickle.
In JSON a list stands for itself, and any other thing with parts is an object of one member:

    {"dict": [[key, value], ...]}        {"tuple": [...]}        {"tensor": "name in the file"}
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import TrainingError


def pack(state: object) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors of a state under names of their own, and all the rest as JSON.

    The tensors are copies on the CPU, so the state may go on changing, and no two share memory,
    which safetensors would refuse.

    Raises:
        TrainingError: Something in it is none of what can be kept; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_packed(state, "state", tensors))


def unpack(tensors: Mapping[str, Tensor], text: str) -> Any:
    """Returns the state that `pack` was given.

    Raises:
        TrainingError: The text is none of `pack`, or a tensor that it names is not there.
    """
    try:
        return _unpacked(json.loads(text), tensors)
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"The saved state of the training is damaged ({error}). Resume from another one."
        ) from error


def _packed(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        name = f"tensor.{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    # Exact types: what is derived from them would come back as something else.
    if type(value) is list or type(value) is tuple:
        parts = [_packed(part, f"{where}[{i}]", tensors) for i, part in enumerate(value)]
        return parts if type(value) is list else {"tuple": parts}
    if type(value) is dict:
        return {"dict": [_packed_item(key, part, where, tensors) for key, part in value.items()]}
    raise TrainingError(
        f"{where} is a {type(value).__name__}, which a saved training cannot hold. Another "
        "optimiser, or other arguments of it, may do without."
    )


def _packed_item(
    key: object, value: object, where: str, tensors: dict[str, Tensor]
) -> list[object]:
    if type(key) not in (str, int):
        raise TrainingError(
            f"{where} has the key {key!r}, but a saved training can hold only texts and whole "
            "numbers as keys."
        )
    return [key, _packed(value, f"{where}[{key!r}]", tensors)]


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an object of {len(value)} members")
    ((kind, parts),) = value.items()
    if kind == "tensor":
        if parts not in tensors:
            raise ValueError(f"no tensor {parts!r}")
        return tensors[parts]
    if kind == "tuple":
        return tuple(_unpacked(part, tensors) for part in parts)
    if kind == "dict":
        return {key: _unpacked(part, tensors) for key, part in parts}
    raise ValueError(f"an object of {kind!r}")
