"""Puts what is trained beside the modules of a model, for as long as a run lasts.

The host's own machinery of injections is used, as for adapters that are only applied: so a run may
let the host move the model about, for a preview or for its VAE, and nothing of the model is written
to. What the modules hold are ordinary tensors after that: the host loads models in inference mode,
and such tensors cannot be part of a gradient.
"""

import itertools
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

from ...algorithms.dispatch import Dispatcher
from ...algorithms.errors import TrainingError, UnsupportedLayerError
from ...algorithms.layers import Layer
from ...algorithms.training.trainable import TrainableAdapter
from .casting import casting_forwards
from .layers import ORDINARY, layer_of
from .out_of_place import OutOfPlace, writes_over_itself
from .standing import Standing, install, remove_of, stand

KEY = "anyadapter_training"
INSTALLED = "anyadapter_training_installed"
"""Attribute of a model: what stands on its modules for a run."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What is trained on a model, by the path of the module."""

    adapters: Mapping[str, TrainableAdapter]
    blocks: tuple[str, ...] = ()
    """Modules whose activations are computed again for the gradient, and not kept."""


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
    if is_dynamic is None or not is_dynamic():
        return patcher.clone()
    if getattr(patcher, "cached_patcher_init", None) is None:
        raise TrainingError(
            "This model does not say how it was loaded, so that it cannot be held in memory while "
            "it is trained: start ComfyUI with --disable-dynamic-vram, or load it by ComfyUI's own "
            "nodes."
        )
    return patcher.clone(disable_dynamic=True)


def _inject(patcher: ModelPatcher) -> None:
    """Puts everything on the modules; called by the host.

    Raises:
        UnsupportedLayerError: A module is no layer any more; nothing is left behind.
    """
    trained: Trained = patcher.get_attachment(KEY)
    install(patcher.model, INSTALLED, trained, _standing(patcher.model, trained))


def _eject(patcher: ModelPatcher) -> None:
    """Takes off what stands there for this run; called by the host."""
    remove_of(patcher.model, INSTALLED, patcher.get_attachment(KEY))


def _standing(model: nn.Module, trained: Trained) -> Generator[Standing]:
    """Puts on one after the other: each stands in for what it finds."""
    if trained.adapters:
        for module, forward in casting_forwards(model):
            yield stand(module, forward)
    for path, adapter in trained.adapters.items():
        yield _beside(model.get_submodule(path), path, adapter)
    over_itself = bool(trained.blocks) and writes_over_itself(model)
    for path in trained.blocks:
        module = model.get_submodule(path)
        forward = partial(_in_new_tensors, module.forward) if over_itself else module.forward
        yield stand(module, partial(_recomputed, forward))


def _beside(module: nn.Module, path: str, adapter: TrainableAdapter) -> Standing:
    layer = layer_of(module)
    if layer is None:
        raise UnsupportedLayerError(f"{path} is no layer that can be trained")
    # Every change is computed from the base, also beside adapters that stand there already.
    original: Callable[..., Tensor] = module.forward
    base = Dispatcher.below(original, retired_only=False)
    return stand(module, partial(_changed, adapter, replace(layer, run=base), original))


def _changed(
    adapter: TrainableAdapter,
    layer: Layer,
    original: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Computes a module and what is learned beside it."""
    assert layer.run is not None
    y = original(x, *args, **kwargs)
    base = layer.run(x) if adapter.form.needs_weight and layer.run is not original else y
    return y + adapter.change(x, base, layer).to(y.dtype)


def _recomputed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Computes a block without keeping its activations.

    The host tells blocks where they are by one table that it goes on writing to: the second time a
    block gets a copy as it was the first time.
    """
    if not torch.is_grad_enabled():
        return original(*args, **kwargs)
    then = [dict(one) if isinstance(one, dict) else None for one in (*args, *kwargs.values())]
    calls = itertools.count()

    def compute(*values: Any) -> Any:
        if next(calls):
            values = tuple(
                value if kept is None else dict(kept)
                for value, kept in zip(values, then, strict=True)
            )
        own = len(args)
        return original(*values[:own], **dict(zip(kwargs, values[own:], strict=True)))

    return checkpoint(compute, *args, *kwargs.values(), use_reentrant=False)


def _in_new_tensors(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Computes a block that may write over its own activations; on whatever thread."""
    with OutOfPlace():
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
