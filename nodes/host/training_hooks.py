"""Puts what is trained beside the modules of a model, for as long as a run lasts.

The host's own machinery of injections is used, as for adapters that are only applied: so a run may
let the host move the model about, for a preview or for its VAE, and nothing of the model is written
to. What the modules hold are ordinary tensors after that: the host loads models in inference mode,
and such tensors cannot be part of a gradient.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...algorithms.errors import UnsupportedLayerError
from ...algorithms.layers import Layer
from ...algorithms.training.trainable import TrainableAdapter
from .casting import casting_forwards
from .layers import ORDINARY, layer_of
from .out_of_place import OutOfPlace, writes_over_itself

KEY = "anyadapter_training"
INSTALLED = "anyadapter_training_installed"
"""Attribute of a model: what stands on its modules for a run."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What is trained on a model, by the path of the module."""

    adapters: Mapping[str, TrainableAdapter]
    blocks: tuple[str, ...] = ()
    """Modules whose activations are computed again for the gradient, and not kept."""


@dataclass(frozen=True, eq=False)
class _Standing:
    module: nn.Module
    forward: Callable[..., Any]
    shadowed: Callable[..., Any] | None
    """The instance attribute that it replaced; None where `forward` came from the class."""

    def remove(self) -> None:
        if self.module.__dict__.get("forward") is not self.forward:
            return
        if self.shadowed is None:
            del self.module.forward
        else:
            self.module.forward = self.shadowed


def for_training(patcher: ModelPatcher) -> ModelPatcher:
    """Returns a clone that `train_on` can put something on."""
    clone = _clone(patcher)
    clone.set_attachments(KEY, Trained({}))
    clone.set_injections(KEY, [PatcherInjection(_inject, _eject)])
    clone.is_injected = False  # a clone believes what its origin says
    return clone


def train_on(clone: ModelPatcher, trained: Trained) -> None:
    """Puts what is trained on a clone for training, which the host has loaded."""
    clone.eject_model()
    clone.set_attachments(KEY, trained)
    clone.inject_model()


@contextmanager
def gradients(model: nn.Module) -> Generator[None]:
    """Lets gradients flow through a model, and into none of its own weights."""
    _make_ordinary(model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def host_in_training() -> Generator[None]:
    """Lets newer hosts compute what has a gradient, in place of what is faster and has none."""
    flag = "in_training"
    if not hasattr(comfy.model_management, flag):
        yield
        return
    before = getattr(comfy.model_management, flag)
    setattr(comfy.model_management, flag, True)
    try:
        yield
    finally:
        setattr(comfy.model_management, flag, before)


def blocks_of(model: nn.Module, paths: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the blocks that hold any of the modules, each the outermost of its kind.

    A block is what stands in a list of modules and is no list itself: a transformer block, or the
    layers in the parts of a UNet.
    """
    found: dict[str, None] = {}
    for path in paths:
        names = path.split(".")
        for depth in range(1, len(names)):
            parent = model.get_submodule(".".join(names[:depth]))
            child = model.get_submodule(".".join(names[: depth + 1]))
            listed = isinstance(parent, nn.ModuleList | nn.Sequential)
            if listed and not isinstance(child, nn.ModuleList | nn.Sequential):
                found[".".join(names[: depth + 1])] = None
                break
    return tuple(name for name in found if name not in paths)


def _clone(patcher: ModelPatcher) -> ModelPatcher:
    """Returns a clone whose weights stay where they are while gradients need them.

    ComfyUI 0.28 can stage weights through buffers that the next layer overwrites.
    """
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is not None and is_dynamic():
        return patcher.clone(disable_dynamic=True)
    return patcher.clone()


def _inject(patcher: ModelPatcher) -> None:
    """Puts everything on the modules; called by the host.

    Raises:
        UnsupportedLayerError: A module is no layer any more; nothing is left behind.
    """
    _remove(patcher.model)
    trained: Trained = patcher.get_attachment(KEY)
    standing: list[_Standing] = []
    try:
        if trained.adapters:
            standing += [_replace(*casting) for casting in casting_forwards(patcher.model)]
        for path, adapter in trained.adapters.items():
            standing.append(_stand(patcher.model.get_submodule(path), path, adapter))
        for path in trained.blocks:
            module = patcher.model.get_submodule(path)
            again = _in_new_tensors if writes_over_itself(patcher.model) else _as_it_is
            standing.append(_replace(module, partial(_recomputed, partial(again, module.forward))))
    except BaseException:
        for item in reversed(standing):
            item.remove()
        raise
    setattr(patcher.model, INSTALLED, (trained, standing))


def _eject(patcher: ModelPatcher) -> None:
    """Takes off what stands there for this run; called by the host."""
    installed = getattr(patcher.model, INSTALLED, None)
    if installed is not None and installed[0] is patcher.get_attachment(KEY):
        _remove(patcher.model)


def _remove(model: nn.Module) -> None:
    installed = getattr(model, INSTALLED, None)
    if installed is not None:
        for item in reversed(installed[1]):
            item.remove()
        delattr(model, INSTALLED)


def _stand(module: nn.Module, path: str, adapter: TrainableAdapter) -> _Standing:
    layer = layer_of(module)
    if layer is None:
        raise UnsupportedLayerError(f"{path} is no layer that can be trained")
    original = module.forward
    return _replace(module, partial(_changed, adapter, replace(layer, run=original), original))


def _replace(module: nn.Module, forward: Callable[..., Any]) -> _Standing:
    shadowed = module.__dict__.get("forward")
    module.forward = forward
    return _Standing(module, forward, shadowed)


def _changed(
    adapter: TrainableAdapter,
    layer: Layer,
    original: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Computes a module and what is learned beside it."""
    y = original(x, *args, **kwargs)
    return y + adapter.change(x, y, layer).to(y.dtype)


def _recomputed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Computes a block without keeping its activations."""
    if not torch.is_grad_enabled():
        return original(*args, **kwargs)
    return checkpoint(original, *args, use_reentrant=False, **kwargs)


def _in_new_tensors(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Computes a block that may write over its own activations; on whatever thread."""
    with OutOfPlace():
        return original(*args, **kwargs)


def _as_it_is(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def _make_ordinary(model: nn.Module) -> None:
    """Makes ordinary tensors of all that were made in inference mode, over the same memory."""
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if _is_in_the_way(parameter):
                ordinary = nn.Parameter(_ordinary(parameter), parameter.requires_grad)
                module.register_parameter(name, ordinary)
        for name, buffer in [*module.named_buffers(recurse=False)]:
            if _is_in_the_way(buffer):
                setattr(module, name, _ordinary(buffer))


def _is_in_the_way(tensor: Tensor) -> bool:
    return type(tensor) in ORDINARY and tensor.is_inference()


def _ordinary(tensor: Tensor) -> Tensor:
    own = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return own.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )
