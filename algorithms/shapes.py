"""Shapes in annotations: `Float[Tensor, "O R"]`, and the check of real tensors against them.

One annotation serves the reader, the test run (jaxtyping and beartype check every call) and the
check of user files (`check_fields`). Letters, everywhere in the pack:

    B batch    O output channels    I input channels per group    *K kernel sizes    R rank
    N blocks   D block size   T tokens   C channels   ... any further axes
"""

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import ShapeError

if TYPE_CHECKING:
    from typing import Annotated as Float
    from typing import Annotated as Integer
else:
    try:
        from jaxtyping import Float, Integer
    except ImportError:
        from typing import Annotated as Float
        from typing import Annotated as Integer

__all__ = ["Float", "Integer", "axes_fit", "check_fields"]

Sizes = dict[str, tuple[int, str]]
"""Letter -> (size, name of the field that set it)."""


def check_fields(owner: type, tensors: Mapping[str, Tensor], where: str) -> None:
    """Checks named tensors against the shape annotations of a dataclass.

    Args:
        owner: The dataclass whose fields are annotated.
        tensors: Field name -> tensor; fields without a tensor are not looked at.
        where: Where the tensors come from, for the message.

    Raises:
        ShapeError: A tensor has another number of axes than its annotation, or a letter would
            have two sizes.
    """
    mistake = _mistake(owner, tuple((name, tuple(one.shape)) for name, one in tensors.items()))
    if mistake:
        raise ShapeError(f"{where}: {mistake}")


@lru_cache(maxsize=4096)  # a file has many layers and few shapes
def _mistake(owner: type, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """Returns what is wrong with the shapes of some fields, empty if nothing is."""
    given = dict(shapes)
    sizes: Sizes = {}
    for name, axes in _axes(owner):
        if name not in given:
            continue
        shape = given[name]
        pairs = _pairs(axes, shape)
        if pairs is None:
            return f"{name} has shape {shape}, but [{' '.join(axes)}] is expected."
        for letter, size in pairs:
            known = sizes.setdefault(letter, (size, name))
            if known[0] != size:
                return (
                    f"{name} has shape {shape}, so {letter} is {size} here, "
                    f"but {known[0]} in {known[1]}. The file is damaged or of an unknown variant."
                )
    return ""


def axes_fit(owner: type, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether shapes have the numbers of axes that the annotations of a dataclass ask for."""
    for name, axes in _axes(owner):
        if name in shapes:
            variadic = sum(_is_variadic(axis) for axis in axes)
            count, fixed = len(shapes[name]), len(axes) - variadic
            if count < fixed or (count > fixed and not variadic):
                return False
    return True


def _is_variadic(axis: str) -> bool:
    return axis == "..." or axis.startswith("*")


@cache
def _axes(owner: type) -> tuple[tuple[str, list[str]], ...]:
    """Returns the fields of a dataclass that are tensors, with their axes."""
    found = ((field.name, _annotated_axes(field.type)) for field in dataclasses.fields(owner))
    return tuple((name, axes) for name, axes in found if axes is not None)


def _annotated_axes(annotation: Any) -> list[str] | None:
    """Returns the axes of `Float[Tensor, "O R"]`, also inside `... | None`; None for other types."""
    if dims := getattr(annotation, "dim_str", None):  # jaxtyping is installed
        return dims.split()
    if typing.get_origin(annotation) is typing.Annotated:
        return annotation.__metadata__[0].split()
    found = (_annotated_axes(part) for part in typing.get_args(annotation))
    return next((axes for axes in found if axes is not None), None)


def _pairs(axes: list[str], shape: tuple[int, ...]) -> list[tuple[str, int]] | None:
    """Pairs letters with sizes, if their numbers fit; axes under `...` or `*name` are free."""
    variadic = [i for i, axis in enumerate(axes) if _is_variadic(axis)]
    fixed = len(axes) - len(variadic)
    if len(shape) < fixed or (len(shape) > fixed and not variadic):
        return None
    if not variadic:
        return list(zip(axes, shape, strict=True))
    head, tail = axes[: variadic[0]], axes[variadic[0] + 1 :]
    return [
        *zip(head, shape, strict=False),
        *zip(tail, shape[len(shape) - len(tail) :], strict=True),
    ]
