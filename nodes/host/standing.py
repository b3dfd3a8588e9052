"""What stands in for the `forward` of modules, put there and taken off as one.

It is found on the model by an attribute, with its owner: the host injects and ejects many clones of a
model, and one that dies must not take off what belongs to another.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...algorithms.dispatch import Dispatcher


@dataclass(frozen=True, eq=False)
class Standing:
    """A `forward` of ours on a module, and what to put back."""

    module: nn.Module
    forward: Callable[..., Any]
    """The very object set as `module.forward`."""
    shadowed: Callable[..., Any] | None
    """The instance attribute that it replaced; None where `forward` came from the class."""
    dispatcher: Dispatcher | None = None
    """Whose `forward` it is, if it is one's."""

    def remove(self) -> None:
        """Restores the module, or steps aside if somebody else has wrapped our `forward`.

        Dispatchers below that have been retired meanwhile are not put back: the host ejects in the
        order in which it has injected, so that what stands below is gone first.
        """
        if self.dispatcher is not None:
            self.dispatcher.retire()
        if self.module.__dict__.get("forward") is not self.forward:
            return
        del self.module.forward
        if self.shadowed is None:
            return
        below = Dispatcher.below(self.shadowed, retired_only=True)
        if below != self.module.forward:  # or else it is that of the class, which is there again
            self.module.forward = below


@dataclass(frozen=True, eq=False)
class _Installed:
    owner: object
    standing: tuple[Standing, ...]


def stand(
    module: nn.Module, forward: Callable[..., Any], dispatcher: Dispatcher | None = None
) -> Standing:
    """Puts a `forward` on a module."""
    shadowed = module.__dict__.get("forward")
    module.forward = forward
    return Standing(module, forward, shadowed, dispatcher)


def install(model: nn.Module, attribute: str, owner: object, standing: Iterable[Standing]) -> None:
    """Puts something on the modules of a model, in place of what is there under the same attribute.

    Args:
        model: The model.
        attribute: Of the model, for what stands there.
        owner: Whose it is.
        standing: Puts one after the other on its module. If it fails, nothing is left behind.
    """
    remove(model, attribute)
    done: list[Standing] = []
    try:
        for one in standing:
            done.append(one)
    except BaseException:
        for one in reversed(done):
            one.remove()
        raise
    setattr(model, attribute, _Installed(owner, tuple(done)))


def owner_of(model: nn.Module, attribute: str) -> Any:
    """Returns whose it is that stands on a model, None where nothing does."""
    installed: _Installed | None = getattr(model, attribute, None)
    return None if installed is None else installed.owner


def remove(model: nn.Module, attribute: str) -> None:
    """Takes off whatever stands on a model."""
    installed: _Installed | None = getattr(model, attribute, None)
    if installed is not None:
        for one in reversed(installed.standing):
            one.remove()
        delattr(model, attribute)


def remove_of(model: nn.Module, attribute: str, owner: object) -> None:
    """Takes off what stands on a model, if it is this owner's."""
    if owner is not None and owner_of(model, attribute) is owner:
        remove(model, attribute)
