"""The contract of a method: named tensors for one layer, and what they change.

A method is one file with five things: its roles (how its tensors are spelled on disk), its fields
with their shapes, `delta_weight`, `delta_output` where a shorter way exists, and `initial`. What it
says besides (`prepared`, `pieces`, `work`, `completed`, ...) has a default that is right for most.
Strength, device and modules are not its matter: strength is written once, in `strength.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_type_hints

import torch
from torch import Generator, Tensor

from ..errors import FormatError
from ..layers import Layer
from ..shapes import Float, axes_fit
from .forms import Form

A = TypeVar("A", bound="Adapter")  # typing.Self needs Python 3.11


@dataclass(frozen=True)
class Role:
    """What a tensor is in its method, and how its name ends in files."""

    field: str
    """Field of the adapter that the tensor fills."""
    suffixes: tuple[str, ...]
    """Every known ending of the key, with its leading separator; the first one is written.

    A `*` stands for one part between dots: the name that PEFT gives an adapter in memory.
    """
    required: bool = True
    shared: bool = False
    """Other methods on the same module may read it too (`alpha`), or it ends names of tensors that
    are no adapter (`.weight`): alone it claims nothing."""
    scalar: bool = False
    """The tensor holds one number, kept as a float."""
    sizes: bool = False
    """The tensor holds a shape, kept as integers."""
    common: bool = False
    """One tensor of the file serves all modules (VeRA's projections)."""
    empty: bool = False
    """The tensor may have no numbers: AdaLoRA may leave a layer none of its ranks."""
    whole: bool = False
    """The tensor holds whole numbers: positions in a weight, say."""
    peft: str = ""
    """The ending that PEFT gives it, where that is not the first one."""

    def spelled(self, spelling: "Spelling") -> str:
        """Returns the ending that is written."""
        return self.peft if spelling == "peft" and self.peft else self.suffixes[0]


ALPHA = Role("alpha", (".alpha",), required=False, shared=True, scalar=True)


Spelling = Literal["kohya", "peft"]
"""How the tensors of an adapter are named: as sd-scripts and LyCORIS do, or as PEFT does."""
Setting = str | int | float | bool | None
"""The value of a field that no tensor holds."""
Tool = Literal["kohya", "lycoris", "peft", "onetrainer", "ai-toolkit"]


@dataclass(frozen=True)
class Origin:
    """What the header, or a file beside it, says of one module where its tensors do not."""

    tool: Tool | None = None
    """Who made the file; None where nothing tells."""
    alpha: float | None = None
    """Numerator of the scale; counts only where the tensors have none."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The maker's own settings by its own names: sd-scripts' network arguments, PEFT's config."""
    module: str = ""
    """Module name as in the file."""
    rank: int | None = None
    """Rank that the module was trained with, for methods whose tensors do not tell."""

    def numerator(self, rank: int) -> float | None:
        """Returns the alpha that, divided by `rank`, gives the scale; None where nothing says it.

        PEFT's `use_rslora` divides alpha by the root of the rank (Kalajdzievski 2023,
        arXiv 2312.03732, section 3).
        """
        if not self.alpha:
            return None
        return self.alpha * rank**0.5 if self.flag("use_rslora") else self.alpha

    def number(self, key: str) -> float | None:
        """Returns an option as a finite number, or None where it is missing or none."""
        value = self.options.get(key)
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if number is not None and math.isfinite(number) else None

    def flag(self, key: str) -> bool | None:
        """Returns an option as a truth value, or None where it is missing; strings are read too."""
        value = self.options.get(key)
        if isinstance(value, str):
            return value.strip().lower() in ("true", "1", "yes")
        return None if value is None else bool(value)


@dataclass(frozen=True)
class Completion(Generic[A]):
    """An adapter after what its tensors do not say was filled in, and what the user should know."""

    adapter: A
    assumed: str = ""
    """What nothing says and was taken, for example `scale 1`."""
    corrected: str = ""
    """What other loaders read otherwise, although the header proves how it was trained."""


@dataclass(frozen=True)
class InitialConfig:
    """What a new adapter needs to know besides its layer; each method reads what concerns it."""

    rank: int = 4
    alpha: float | None = None
    factor: int = -1
    """LoKr's wish for the smaller part of each side of a weight; -1 is the most square split."""
    full_matrix: bool = False
    """Of LoKr: whether both sides are whole, whatever the rank."""
    decompose_both: bool = False
    """Of LoKr: whether w1 too is made of factors, where the rank is below half of its longer side."""
    unbalanced: bool = False
    """Of LoKr: whether w1 has the larger part of the outputs (`unbalanced_factorization`)."""
    use_tucker: bool = False
    """Of LoKr: whether the factors of w2 leave the kernel to a core. LoRA and LoHa with a core are
    methods of their own."""
    on_input: bool = False
    """Of (IA)^3: whether the inputs are scaled, and not the outputs."""
    constraint: float = 0.0
    """Of rotations: how far they may turn, 0 for as far as they like; kohya calls it alpha."""
    rescaled: bool = False
    """Of rotations: whether the lengths of rows are trained too."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """A change of a weight in pieces that a plan joins with those of other adapters.

    dW = scale * up @ down + outputs * W (row by row) + inputs * W (column by column)
    """

    up: Float[Tensor, "O R"] | None = None
    down: Float[Tensor, "R C"] | None = None
    """C: inputs times kernel. Both are there or none."""
    scale: float = 1.0
    outputs: Float[Tensor, " O"] | None = None
    inputs: Float[Tensor, " I"] | None = None
    """Factors less 1 of the inputs of a layer without groups."""


@dataclass(frozen=True)
class Work:
    """How much a method computes on a layer, in multiplications."""

    in_weight: int | float
    """Of `delta_weight`."""
    on_output: int | float
    """Of `delta_output`."""


@dataclass(frozen=True, eq=False)
class Adapter(ABC):
    """The tensors of one method for one layer, as the file holds them."""

    name: ClassVar[str]
    """What the user sees, for example `LoRA`."""
    roles: ClassVar[tuple[Role, ...]]
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields that no tensor of a file holds, and that its header has to tell."""
    assumes: ClassVar[str] = ""
    """What no file of the method says and is taken all the same."""
    needs_weight: ClassVar[bool] = False
    """Whether `delta_weight` reads the values of the weight, and not only its shape."""
    prepares_from_weight: ClassVar[bool] = False
    """Whether `prepared` reads them, so that a hook needs them, once."""
    additive: ClassVar[bool] = False
    """Whether the change of the weight does not depend on it: such a method can be decomposed."""

    @classmethod
    def fits(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether tensors of these shapes can be this method, told from others of the same roles.

        Asked before the sizes are checked. A method that shares its suffixes with another one and
        differs in more than the number of axes overrides it.

        Args:
            shapes: Field -> shape.
        """
        return axes_fit(cls, shapes)

    def grown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape to which the weight is filled up with zeros before it is changed.

        It is `shape` for all methods that do not change the shape of a weight, and only these can
        be hooked: the input of the layer changes its width too.

        Raises:
            ShapeError: The weight is larger.
        """
        return shape

    @abstractmethod
    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."] | None:
        """Returns the change of `weight` at full strength, in float32 or better.

        Args:
            weight: The base weight. Only its shape is read unless `needs_weight`.

        Returns:
            A tensor of the shape of `weight`, or None where only the bias changes.

        Raises:
            ShapeError: The tensors do not fit the weight.
        """

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the change of `bias` at full strength, or None where it does not change.

        Args:
            bias: The base bias, or None where the layer has none. Its length need not be that of
                the result: whoever binds the adapter checks that.
        """
        del bias
        return None

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Adapter":
        """Returns the adapter with all constants that a base needs, computed once when it is bound.

        The result changes `weight` and the outputs of its layer, and no other. It may be of a
        simpler method that makes the same change: a LoRA, where a change of low rank is wrapped up.

        Args:
            weight: The base weight in float32 or better; without values (on the meta device)
                unless `prepares_from_weight`.
        """
        del weight
        return self

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks against a weight of `shape` what only the numbers tell, once when it is bound.

        Raises:
            ShapeError: A number of this adapter points outside of the weight, or of its own tensors.
        """
        del shape

    def completed(self: A, origin: Origin, *, corrections: bool) -> Completion[A]:
        """Returns the adapter with what its file says outside of its tensors.

        Args:
            origin: The file's word on this module.
            corrections: Whether to depart from other loaders where the file proves them wrong.
        """
        del origin, corrections
        return Completion(self)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change of the output at full strength; it broadcasts against `y`.

        Args:
            x: The input of the layer.
            y: What the layer gives without adapters, bias included.
            layer: Kind and geometry of the layer.
        """
        weight = layer.weight(x) if self.needs_weight else layer.blank
        change, shift = self.delta_weight(weight), self.delta_bias(layer.bias(x))
        shift = None if shift is None else shift.to(x.dtype)
        if change is not None:
            return layer.apply(x, change.to(x.dtype), shift)
        return y.new_zeros(()) if shift is None else layer.over_channels(shift, y)

    def pieces(self, layer: Layer) -> Pieces | None:
        """Returns the change of the weight in pieces, or None where it has none such.

        Asked of an adapter that was prepared. The change of the bias is not part of it. With pieces
        the adapter runs by them; without, by its own `delta_weight` or `delta_output`.
        """
        del layer
        return None

    def form(self) -> Form | None:
        """Returns the change of the weight as its tensors alone tell it, in float32 or better.

        None where it takes the weight, or its shape, to tell. It serves to look at a change, not to
        apply it.
        """
        return None

    def relative_norm(self) -> float | None:
        """Returns about how large the change of a weight is whose rows are of length 1.

        For methods that read the weight; None where such a weight says nothing either.
        """
        return None

    def work(self, layer: Layer, positions: int) -> Work:
        """Returns what an adapter without pieces computes, by which a plan chooses its way.

        Args:
            layer: The layer.
            positions: Tokens or pixels of the output, over the batch.
        """
        numbers = math.prod(layer.weight_shape)
        return Work(numbers, numbers + positions * numbers)

    @classmethod
    @abstractmethod
    def initial(cls: type[A], layer: Layer, config: InitialConfig, generator: Generator) -> A:
        """Returns tensors that change nothing yet, for training.

        Args:
            layer: The layer to adapt.
            config: Sizes.
            generator: Source of all randomness.
        """

    @property
    def rank(self) -> int | None:
        """Inner size of a low-rank method; None for the others."""
        return None

    @property
    def label(self) -> str:
        """What the user reads of this adapter: the method, for most."""
        return self.name

    def sliced(self: A, rank: int) -> A:
        """Returns the adapter cut to its first `rank` ranks; without ranks, itself."""
        del rank
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensor fields that are present, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}

    def with_tensors(self: A, tensors: Mapping[str, Tensor]) -> A:
        """Returns a copy with other tensors under the names that `tensors` gives them."""
        return replace(self, **tensors)

    def stored(self, spelling: Spelling = "kohya") -> dict[str, Tensor | float | tuple[int, ...]]:
        """Returns what a file holds of this adapter: suffix -> tensor, number or sizes."""
        values = {role.spelled(spelling): getattr(self, role.field) for role in self.roles}
        return {suffix: value for suffix, value in values.items() if value is not None}

    def for_peft(self) -> "Adapter | None":
        """Returns the adapter as PEFT and diffusers keep it, whatever its configuration says.

        Its scale is in the tensors, so that readers without the configuration are right too. None
        where they have no place for the method.
        """
        return None

    def unstored(self) -> dict[str, Setting]:
        """Returns what no tensor of a file holds: settings other than the usual ones, by field.

        They come from the header of the file that the adapter was read from (`completed`).
        """
        usual = {one.name: one.default for one in fields(self)}
        own = {name: getattr(self, name) for name in self.settings}
        return {name: value for name, value in own.items() if value != usual[name]}

    def with_unstored(self: A, settings: Mapping[str, Setting]) -> A:
        """Returns a copy with the settings that `unstored` gave.

        Raises:
            FormatError: A setting is unknown, or has a value that it cannot have.
        """
        kinds = get_type_hints(type(self))
        for name, value in settings.items():
            if name not in self.settings:
                raise FormatError(
                    f"{self.name} is said to have a {name}, which is not known here. "
                    "The header is of a later version of Any Adapter: update it."
                )
            if not _is_one_of(value, kinds[name]):
                cause = "of a later version of Any Adapter: update it, or it is damaged"
                raise FormatError(
                    f"{self.name} is said to have {name} = {value}, which it cannot have. The header "
                    f"is {cause if isinstance(value, str) else 'damaged'}: save or download the file "
                    "again."
                )
        return replace(self, **settings)

    def to(self: A, device: torch.device | str, dtype: torch.dtype | None = None) -> A:
        """Returns a copy with all tensors moved; tensors already there are shared.

        Whole numbers (positions in a weight) keep their dtype. Where nothing moves it is no copy.
        """
        tensors = self.tensors()
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in tensors.items()
        }
        if all(moved[name] is value for name, value in tensors.items()):
            return self
        return self.with_tensors(moved)


def _is_one_of(value: Setting, kind: Any) -> bool:
    """Whether a value is of the type that a field has, a union, literals or a plain one, and sane."""
    options = get_args(kind)
    if options:
        return any(_is_one_of(value, one) for one in options)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if type(value) is int and abs(value) >= 2**63:  # more than torch takes for a seed or a size
        return False
    if isinstance(kind, type):
        return type(value) is kind or (kind is float and type(value) is int)
    return type(value) is type(kind) and value == kind


def scale_of(alpha: float | None, rank: int) -> float:
    """Returns alpha / rank, or 1 where a file has no alpha (or 0): the convention of all tools."""
    return alpha / rank if alpha else 1.0


def widened(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float32 or better: changes of weights are computed no lower."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def roomy(tensor: Tensor) -> Tensor:
    """Returns a tensor of float8 in float16, which holds the same numbers and computes with them."""
    narrow = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.half() if narrow else tensor


def times(tensor: Tensor, factor: float) -> Tensor:
    """Returns the product, computed in float32 or better, in the dtype of the tensor if it has room."""
    if factor == 1:
        return tensor
    product = widened(tensor) * factor
    made = product.to(roomy(tensor).dtype)
    return product if made.isinf().any() else made
