"""The shape of a weight: as the tensors of an adapter tell it, and as those of a LoRA have it."""

from dataclasses import replace
from math import prod

from torch import Tensor

from ..adapters import Adapter
from ..adapters.adalora import AdaLora
from ..adapters.forms import Whole
from ..adapters.loha import Loha, LohaTucker
from ..adapters.lokr import Lokr
from ..adapters.lora import Lora, LoraTucker
from ..shapes import Float


def told_shape(adapter: Adapter) -> tuple[int, ...] | None:
    """Returns the shape of the weight as an adapter alone tells it.

    That of a matrix where its kernel is hidden; None where it changes no weight, or tells nothing.
    """
    if isinstance(adapter, Lora):
        return adapter.up.shape[0], *adapter.down.shape[1:]
    if isinstance(adapter, LoraTucker):
        return adapter.up.shape[0], adapter.down.shape[1], *adapter.mid.shape[2:]
    if isinstance(adapter, Loha):
        return adapter.w1_a.shape[0], *adapter.w1_b.shape[1:]
    if isinstance(adapter, LohaTucker):
        return adapter.w1_a.shape[1], adapter.w1_b.shape[1], *adapter.t1.shape[2:]
    form = adapter.form()
    if form is None or 0 in form.sizes:
        return None
    if isinstance(adapter, Lokr):
        rows, columns = form.sizes
        kernel = _kernel_of(adapter)
        return rows, columns // prod(kernel), *kernel
    return tuple(form.tensor.shape) if isinstance(form, Whole) else form.sizes


def hides_kernel(adapter: Adapter) -> bool:
    """Whether an adapter may be for a kernel that its tensors do not tell from a matrix."""
    if isinstance(adapter, Loha):
        return adapter.w1_b.ndim == 2
    if isinstance(adapter, Lokr):
        return adapter.w2 is None and not _kernel_of(adapter)
    return isinstance(adapter, AdaLora)


def _kernel_of(adapter: Lokr) -> tuple[int, ...]:
    """Returns the kernel of a LoKr; nothing where it is flattened together with the inputs."""
    core = next((one for one in (adapter.w2, adapter.t2, adapter.w2_b) if one is not None), None)
    return () if core is None else tuple(core.shape[2:])


def has_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a weight of a shape has a kernel larger than a point."""
    return bool(set(shape[2:]) - {1})


def lora_of(up: Float[Tensor, "O R"], down: Float[Tensor, "R C"], shape: tuple[int, ...]) -> Lora:
    """Returns a LoRA of two factors for a weight of a shape, with everything in them: scale 1."""
    return on_axes(Lora(up.contiguous(), down.contiguous(), float(up.shape[1])), shape)


def on_axes(lora: Lora, shape: tuple[int, ...]) -> Lora:
    """Returns a LoRA whose factors have the axes of a weight: the kernel is that of the second."""
    if len(shape) < 2:
        return lora
    down = lora.down.reshape(-1, *shape[1:])
    up = lora.up.reshape(shape[0], -1, *[1] * (len(shape) - 2))
    return replace(lora, up=up, down=down)
