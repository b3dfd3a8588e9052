"""Module names in files and weights of a model: one map, both directions, built from pairs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .layers import Rows


@dataclass(frozen=True)
class Target:
    """A weight of the model, or some rows of it."""

    weight: str
    """The host's own key, for example `diffusion_model.out.2.weight`."""
    rows: Rows | None = None

    @property
    def module(self) -> str:
        """The module that owns the weight."""
        return self.weight.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """The name of the weight in its module: `weight` nearly always."""
        return self.weight.rpartition(".")[2]

    @property
    def bias(self) -> str:
        """The key of the bias beside the weight, whether or not there is one."""
        return f"{self.module}.bias"

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the target, given that of the whole weight."""
        return whole if self.rows is None else (self.rows.length, *whole[1:])


class KeyMap:
    """Which module name of a file means which weight; several names may mean the same weight."""

    def __init__(
        self,
        pairs: Iterable[tuple[str, Target]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Builds the map.

        Args:
            pairs: (module name, target).
            shapes: Key of every parameter of the model -> its shape.

        Raises:
            ValueError: A name is given two different targets, or a target that has no shape.
        """
        self.shapes = dict(shapes)
        self._targets: dict[str, Target] = {}
        self._names: dict[Target, list[str]] = {}
        for name, target in pairs:
            if target.weight not in self.shapes:
                raise ValueError(f"{name} points to {target.weight}, which the model does not have")
            if self._targets.setdefault(name, target) != target:
                raise ValueError(f"{name} points to {target} and to {self._targets[name]}")
            self._names.setdefault(target, []).append(name)

    def target(self, name: str) -> Target | None:
        """Returns what a module name of a file means, or None if it means nothing here."""
        return self._targets.get(name)

    def names(self, target: Target) -> tuple[str, ...]:
        """Returns every module name that means `target`."""
        return tuple(self._names.get(target, ()))

    def __len__(self) -> int:
        return len(self._targets)
