"""Max norm: adapters whose change has grown larger than a limit are made smaller.

    n = max(||dW||, M / 2)        ratio = min(n, M) / n        dW becomes ratio * dW

Source: sd-scripts 0.10.1 `apply_max_norm_regularization` and LyCORIS `apply_max_norm`. The norm is that
of the forms in `adapters/forms.py`, which build no change of a whole weight. Methods that take the
weight to tell are measured by what they do to rows of length 1 ((IA)^3, GLoRA); rotations by their
blocks, as in LyCORIS. The change becomes smaller by the factors that make it: each of k factors by
ratio^(1 / k). T-LoRA goes back towards its start until its norm is M. A DoRA is limited inside, a
change of a bias not at all.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.diff import Diff
from ..adapters.dora import INNER, Dora
from ..adapters.norm import Norm
from ..adapters.rotation import Rotation
from ..errors import TrainingError
from .methods import METHODS
from .nested_lora import NestedLora
from .trainable import TrainableAdapter, TrainableNetwork
from .trained_tlora import TrainedTlora

HALVINGS = 24
"""Of the way back to T-LoRA's start: as fine as float32 is."""


@torch.no_grad()
def limit_norms(network: TrainableNetwork, maximum: float) -> None:
    """Makes adapters smaller whose change is larger than `maximum`; to be called after each step.

    Args:
        network: Changed in place.
        maximum: M; 1 is a usual start.

    Raises:
        TrainingError: `maximum` is 0 or less.
    """
    if not maximum > 0:
        raise TrainingError(f"The limit of norms is {maximum}; set it above 0, 1 is usual.")
    for _, trainable in network.items():
        above = max(norm_of(trainable.current()), maximum / 2)
        ratio = min(above, maximum) / above
        if ratio < 1:
            trainable.write(_shrunk(trainable, ratio, maximum))


@torch.no_grad()
def norm_of(adapter: Adapter) -> float:
    """Returns the norm of a change, or the measure that stands for it."""
    if isinstance(adapter, Dora):
        return norm_of(adapter.inner)
    if isinstance(adapter, Rotation):
        squares = [float(torch.linalg.vector_norm(block)) ** 2 for block in _blocks(adapter)]
        return sum(squares) ** 0.5
    form = adapter.form()
    norm = adapter.relative_norm() if form is None else form.norm()
    assert norm is not None, "each method that is trained tells one of both"
    return norm


def _shrunk(trainable: TrainableAdapter, ratio: float, maximum: float) -> dict[str, Tensor]:
    """Returns the tensors that are to be others, by name."""
    adapter, prefix = trainable.current(), ""
    if isinstance(adapter, Dora):
        adapter, prefix = adapter.inner, INNER
    if isinstance(adapter, TrainedTlora):
        return _nearer_to_start(adapter, maximum)
    fixed = METHODS[trainable.config.method].fixed
    powers = {name: power for name, power in _powers(adapter, fixed).items() if power}
    tensors = adapter.tensors()
    return {prefix + name: tensors[name] * ratio**power for name, power in powers.items()}


def _powers(adapter: Adapter, fixed: frozenset[str]) -> Mapping[str, float]:
    """Returns to which power of the ratio each tensor is multiplied."""
    names = [name for name in adapter.tensors() if name not in fixed]
    if isinstance(adapter, Diff | Norm):
        names = [name for name in names if name in ("diff", "w_norm")]
    elif isinstance(adapter, Rotation):
        return {name: float("blocks" in name) for name in names}
    elif isinstance(adapter, NestedLora):
        names = ["up", "down"]
    elif adapter.form() is None and len(names) > 1:  # GLoRA: a sum of two products
        return dict.fromkeys(names, 0.5)
    return dict.fromkeys(names, 1 / max(len(names), 1))


def _nearer_to_start(adapter: TrainedTlora, maximum: float) -> dict[str, Tensor]:
    """Returns tensors on the line to the start, as far out as the norm allows."""
    now = {"q": adapter.q, "p": adapter.p, "lengths": adapter.lengths}
    start = {"q": adapter.base_q, "p": adapter.base_p, "lengths": adapter.base_lengths}
    near, share, step = start, 0.0, 0.5
    for _ in range(HALVINGS):
        tried = {name: torch.lerp(start[name], now[name], share + step) for name in now}
        if norm_of(adapter.with_tensors(tried)) <= maximum:
            near, share = tried, share + step
        step /= 2
    return near


def _blocks(adapter: Rotation) -> list[Tensor]:
    return [tensor for name, tensor in adapter.tensors().items() if "blocks" in name]
