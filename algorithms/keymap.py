"""Module names in files and weights of a model: one map, both directions, built from pairs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from .errors import AmbiguousNameError
from .layers import Rows, swap_halves


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

    def __str__(self) -> str:
        if self.rows is None:
            return self.weight
        return f"{self.weight} rows {self.rows.start} to {self.rows.start + self.rows.length - 1}"


def rows_of(weight: str, start: int, length: int) -> Target:
    """Returns some rows of a fused weight."""
    return Target(weight, Rows(start, length))


def halves_swapped(weight: str, length: int) -> Target:
    """Returns a weight of `length` rows whose halves stand in the other order in files."""
    return Target(weight, Rows(0, length, swap_halves))


Naming = Literal["host", "diffusers"]


@dataclass(frozen=True)
class Dialect:
    """How a tool spells the module names that it writes."""

    name: str
    prefix: str
    naming: Naming
    """Whose names of the modules: the host's, which are mostly the original model's, or diffusers'."""
    underscored: bool = False
    """Whether dots are written as underscores."""

    def spelled(self, name: str) -> str:
        """Returns a module name as this tool writes it."""
        return self.prefix + (name.replace(".", "_") if self.underscored else name)


@dataclass(frozen=True, eq=False)
class Part:
    """A diffusion model, or one text encoder of several, and how files name its weights."""

    prefixes: tuple[str, ...]
    """What tools put before a module name, several of them at times."""
    names: tuple[tuple[str, Target], ...]
    """(Name without prefix, target). A name with underscores for dots is found only as such."""
    host: Mapping[Target, str]
    """The host's own name of a weight."""
    diffusers: Mapping[Target, str]
    """The name in diffusers or transformers, of all that has one there."""
    dialects: tuple[Dialect, ...] = ()

    def found(self, name: str) -> dict[Target, str]:
        """Returns what a name of a file may mean: target -> the known name that fits.

        Names are compared as they are: a dotted one with dotted ones, an underscored one, which
        cannot be split again, with known names whose dots were made underscores.
        """
        bare = [name.replace("._orig_mod.", ".")]  # of a block that was compiled on its own
        for one in bare:
            bare += [one.removeprefix(prefix) for prefix in self.prefixes if one.startswith(prefix)]
        return {target: one for one in bare for target in self._table.get(one, ())}

    @cached_property
    def _table(self) -> dict[str, tuple[Target, ...]]:
        table: dict[str, tuple[Target, ...]] = {}
        for name, target in self.names:
            for spelled in {name, name.replace(".", "_")}:
                known = table.get(spelled, ())
                if target not in known:
                    table[spelled] = (*known, target)
        return table

    @cached_property
    def names_of(self) -> Mapping[Target, tuple[str, ...]]:
        """Every name of each target, without prefix."""
        names: dict[Target, tuple[str, ...]] = {}
        for name, target in self.names:
            names[target] = (*names.get(target, ()), name)
        return names

    def units(self, target: Target, dialect: str) -> tuple[Target, ...]:
        """Returns the weight of a target in the pieces that a tool has, each one of its layers.

        It is the whole weight, but where diffusers has layers of their own for parts of it, or the
        rows in another order.
        """
        naming = next((one.naming for one in self.dialects if one.name == dialect), None)
        whole = Target(target.weight)
        if naming != "diffusers":
            return (whole,)
        own = [one for one in self.diffusers if one.weight == target.weight]
        return _row_by_row(own) or (whole,)

    def spelled(self, target: Target, dialect: str) -> str | None:
        """Returns the name of a target in a dialect, or None where it has none."""
        for one in self.dialects:
            if one.name != dialect:
                continue
            name = (self.diffusers if one.naming == "diffusers" else self.host).get(target)
            if name is not None:
                return one.spelled(name)
        return None


def _row_by_row(parts: Iterable[Target]) -> tuple[Target, ...]:
    """Returns those parts of a weight that follow each other, the smallest where several begin."""
    following: dict[int, Target] = {}
    for part in parts:
        if part.rows is None:
            continue
        known = following.get(part.rows.start)
        if known is None or known.rows is None or part.rows.length < known.rows.length:
            following[part.rows.start] = part
    found: list[Target] = []
    row = 0
    while row in following:
        found.append(following[row])
        rows = following[row].rows
        row += rows.length if rows else 0
    return tuple(found)


class KeyMap:
    """Which module name of a file means which weight; several names may mean the same weight."""

    def __init__(
        self,
        pairs: Iterable[tuple[str, Target]],
        shapes: Mapping[str, tuple[int, ...]],
        parts: Iterable[Part] = (),
    ) -> None:
        """Builds the map.

        Args:
            pairs: (Module name, target): whole names, which are looked up first.
            shapes: Key of every parameter of the model -> its shape.
            parts: Names that are found with any prefix that a tool writes.

        Raises:
            ValueError: A name is given two different targets, or a target that has no shape.
        """
        self.shapes = dict(shapes)
        self.parts = tuple(parts)
        self._targets: dict[str, Target] = {}
        self._names: dict[Target, list[str]] = {}
        for name, target in pairs:
            if target.weight not in self.shapes:
                raise ValueError(f"{name} points to {target.weight}, which the model does not have")
            if self._targets.setdefault(name, target) != target:
                raise ValueError(f"{name} points to {target} and to {self._targets[name]}")
            self._names.setdefault(target, []).append(name)

    def target(self, name: str) -> Target | None:
        """Returns what a module name of a file means, or None if it means nothing here.

        Raises:
            AmbiguousNameError: It may mean two different weights.
        """
        exact = self._targets.get(name)
        if exact is not None:
            return exact
        found = {target: known for part in self.parts for target, known in part.found(name).items()}
        if len(found) > 1:
            meanings = " and ".join(f"{target} (as {known})" for target, known in found.items())
            raise AmbiguousNameError(
                f"{name} may mean {meanings}. Any Adapter does not guess between them: save the "
                "adapter with a prefix that tells which part of the model it is for."
            )
        return next(iter(found), None) or self._parameter(name)

    def _parameter(self, name: str) -> Target | None:
        """Returns the weight or the bias of a module, where the name says which one is meant."""
        module, _, parameter = name.rpartition(".")
        if not module or parameter not in ("weight", "scale", "bias"):
            return None
        target = self.target(module)
        if target is None or parameter != "bias":
            return target  # the weight of a norm is its `scale` in some versions of a model
        return replace(target, weight=target.bias) if target.bias in self.shapes else None

    def names(self, target: Target) -> tuple[str, ...]:
        """Returns every module name that means `target`, those with further prefixes left out."""
        own = self._names.get(target, [])
        bare = [name for part in self.parts for name in part.names_of.get(target, ())]
        return tuple(dict.fromkeys([*own, *bare]))

    def name(self, target: Target, dialect: str) -> str | None:
        """Returns how a tool names `target`, or None if it has no name for it.

        Args:
            target: A weight or a slice of one.
            dialect: `comfy`, `kohya`, `diffusers`, ...: a `Dialect` of the part that has it.
        """
        spelled = (part.spelled(target, dialect) for part in self.parts)
        return next((name for name in spelled if name is not None), None)

    def units(self, target: Target, dialect: str) -> tuple[Target, ...]:
        """Returns the weight of a target in the pieces that a tool has; see `Part.units`."""
        whole = Target(target.weight)
        units = next(
            (part.units(target, dialect) for part in self.parts if whole in part.host), (whole,)
        )
        rows = sum(unit.rows.length for unit in units if unit.rows is not None)
        return units if rows == self.shapes[target.weight][0] else (whole,)

    def targets(self) -> Iterator[Target]:
        """Iterates over everything that has a name, each once."""
        bare = (target for part in self.parts for target in part.names_of)
        return iter(dict.fromkeys([*self._names, *bare]))

    def __len__(self) -> int:
        return len(self._targets)
