"""Lets gradients flow through models of the host that write over their own activations.

Text encoders and most transformers of the host add to a tensor in place (`x += attention(norm(x))`)
that a layer before has kept for its gradient. Without recomputation torch refuses that, and with
recomputation nobody notices, and the gradients are wrong. Here the sum is a new tensor.
"""

import dis
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OUT_OF_PLACE: Mapping[Any, Callable[..., Tensor]] = {
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.div,
}
"""What `+=` and so on come to -> the same with a new tensor, which the statement gives the name to."""
STATEMENTS = (
    "BINARY_OP",
    "INPLACE_ADD",
    "INPLACE_SUBTRACT",
    "INPLACE_MULTIPLY",
    "INPLACE_TRUE_DIVIDE",
)
"""Names of Python's instructions for such statements, the first one from Python 3.11 on."""


class OutOfPlace(TorchFunctionMode):
    """Makes new tensors where `+=` would change one that takes part in a gradient.

    A call of `add_` is left alone: what it returns may be thrown away. torch does not tell it from a
    statement, only the instruction of the caller does.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch, or what stands for it."""
        instead = OUT_OF_PLACE.get(func)
        if instead is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        if not _is_statement(inspect.currentframe()):
            return func(*args, **(kwargs or {}))
        before: Tensor = args[0]
        return instead(*args, **(kwargs or {})).to(before.dtype)


def _is_statement(frame: FrameType | None) -> bool:
    """Whether what called this function of torch is a statement such as `+=`."""
    caller = None if frame is None else frame.f_back
    if caller is None:
        return False
    return dis.opname[caller.f_code.co_code[caller.f_lasti]] in STATEMENTS


def writes_over_itself(model: nn.Module) -> bool:
    """Whether a model may do so: all but the UNets, in which nothing that is kept is written to."""
    return not hasattr(getattr(model, "diffusion_model", None), "input_blocks")
