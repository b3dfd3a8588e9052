"""OFT: one side of a weight rotated by small blocks, in the five layouts that tools save.

    Q skew        C(Q) = (1 + Q) (1 - Q)^-1        W' = g * (R W) or g * (W R^T)

    kohya, LyCORIS, ComfyUI   `oft_blocks`      Q = B - B^T       R = C(-Q) on outputs
    kohya, fused weights      `oft_blocks.0`…   the same for each part of the outputs
    PEFT to 0.13              `oft_r`           Q = (B - B^T) / 2  R = C(Q) on outputs
    PEFT 0.14 and 0.15        `oft_r`, `oft_s`  Q = (B - B^T) / 2  R = C(-Q) on inputs, g = oft_s
    PEFT from 0.16, OneTrainer  `oft_R.weight`  Q from its upper triangle, R near C(Q) on inputs

Source: OFT, Qiu et al. 2023, arXiv 2306.07280, section 3; OFT v2, Qiu et al. 2025,
arXiv 2506.19847, section 3 (Cayley-Neumann series). Everything else are the habits of the tools,
measured with them. Departs from ComfyUI 0.28, which squares the strength, ignores `rescale`, and
reads every constraint without its factor; and from LyCORIS, which at strength 0 keeps `rescale`:
here the result at strength s lies on the line from W to W'.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import FormatError, ShapeError, UndecidedError
from ..layers import Layer
from ..shapes import Float
from .base import Completion, InitialConfig, Origin, Role, widened
from .linalg import factorization
from .rotation import (
    CONSTRAINT,
    Rotation,
    block_product,
    cayley,
    cayley_neumann,
    even_split,
    limited,
    projected,
    require_blocks,
    require_turning,
    skew_from_vectors,
    skew_of,
)

COFT_EPS = 6e-5
"""PEFT's default."""
NEUMANN_TERMS = 5
"""PEFT's default, and the only form that OneTrainer has."""
MOST_TERMS = 100
"""More make no difference where the series has a limit at all."""

BLOCKS = Role("oft_blocks", (".oft_blocks",))
RESCALE = Role("rescale", (".rescale",), required=False)


@dataclass(frozen=True, eq=False)
class DiagOft(Rotation):
    """OFT with square blocks on the outputs: kohya's, LyCORIS' diag-OFT and ComfyUI's own."""

    name = "OFT"
    roles = (BLOCKS, RESCALE, CONSTRAINT)
    settings = ("maker",)

    oft_blocks: Float[Tensor, "N D D"]
    rescale: Float[Tensor, "..."] | None = None
    alpha: float | None = None
    """The constraint: it limits the norm of Q over all blocks together."""
    maker: Literal["lycoris", "kohya", "comfyui"] = "lycoris"
    """How alpha is meant. Times the number of outputs, and 0 is free (LyCORIS) or no turn at all
    (kohya); or the limit itself (ComfyUI)."""

    @property
    def span(self) -> int:
        """Rows of one block."""
        return self.oft_blocks.shape[-1]

    @property
    def length(self) -> int:
        """Rows of all blocks."""
        return _rows(self.oft_blocks)

    @property
    def limit(self) -> float | None:
        """The largest norm of Q, or None where it is free."""
        if self.alpha is None or (self.alpha <= 0 and self.maker != "kohya"):
            return None
        return self.alpha if self.maker == "comfyui" else self.alpha * _rows(self.oft_blocks)

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R - 1 of every block."""
        count, size, _ = self.oft_blocks.shape
        require_blocks(count, size, shape[0], "outputs")
        return cayley(-limited(skew_of(self.oft_blocks), self.limit))

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis."""
        assert self.turn is not None
        return block_product(self.turn.mT if back else self.turn, tensor, axis)

    def gain(self, shape: tuple[int, ...]) -> Float[Tensor, "..."] | None:
        """Returns LyCORIS' `rescale`."""
        del shape
        return self.rescale

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[DiagOft]":
        """Returns the adapter with the meaning of alpha that its maker gives it.

        ComfyUI's trainer writes no header, names modules as the model does and has alpha 1, which
        nobody uses in LyCORIS: it is no limit there.
        """
        del corrections
        if origin.tool == "kohya":
            return Completion(replace(self, maker="kohya"))
        in_model = origin.module.startswith("diffusion_model.")
        if origin.tool is None and in_model and self.alpha == 1:
            made = replace(self, maker="comfyui")
            return Completion(made, assumed="alpha 1 is the limit that ComfyUI's trainer sets")
        return Completion(self)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "DiagOft":
        """Returns zero blocks, split as LyCORIS does it: no larger than there are blocks.

        Raises:
            ShapeError: The outputs cannot be split into blocks that turn.
        """
        del generator
        size, count = factorization(layer.weight_shape[0], config.rank)
        require_turning(size, layer.weight_shape[0])
        return cls(torch.zeros(count, size, size), new_rescale(layer, config), config.constraint)

    @classmethod
    def initial_of_kohya(cls, layer: Layer, config: InitialConfig) -> "DiagOft":
        """Returns zero blocks as sd-scripts splits them: `rank` is their number.

        Without a constraint there is no alpha, since 0 is no turn at all to kohya.

        Raises:
            ShapeError: The outputs cannot be split into so many blocks that turn.
        """
        size = _size_of_kohya(layer.weight_shape[0], config.rank)
        blocks = torch.zeros(config.rank, size, size)
        return cls(blocks, alpha=config.constraint or None, maker="kohya")


@dataclass(frozen=True, eq=False)
class SplitOft(Rotation):
    """kohya's OFT on a fused weight of Flux: each part of the outputs has its own blocks."""

    name = "OFT (kohya, in parts)"
    roles = (
        *(Role(f"oft_blocks_{i}", (f".oft_blocks.{i}",), required=i == 0) for i in range(4)),
        CONSTRAINT,
    )

    oft_blocks_0: Float[Tensor, "N D D"]
    oft_blocks_1: Float[Tensor, "N E E"] | None = None
    oft_blocks_2: Float[Tensor, "N F F"] | None = None
    oft_blocks_3: Float[Tensor, "N G G"] | None = None
    alpha: float | None = None
    """The constraint: times the rows of a part, it limits the norm of Q over the blocks of it."""

    @property
    def parts(self) -> list[Tensor]:
        """The blocks of each part, from the first row on.

        Raises:
            ShapeError: One in between is missing.
        """
        every = (self.oft_blocks_0, self.oft_blocks_1, self.oft_blocks_2, self.oft_blocks_3)
        present = [part for part in every if part is not None]
        if any(part is not None for part in every[len(present) :]):
            raise ShapeError("the blocks of a part in the middle are missing")
        return present

    @property
    def length(self) -> int:
        """Rows of all parts."""
        return sum(_rows(part) for part in self.parts)

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R - 1 of every block, flattened, part after part."""
        rows = [_rows(part) for part in self.parts]
        if sum(rows) != shape[0] or not all(rows):
            raise ShapeError(
                f"the parts rotate {' + '.join(map(str, rows))} outputs, the weight has {shape[0]}"
            )
        turns: list[Tensor] = []
        for part, length in zip(self.parts, rows, strict=True):
            limit = None if self.alpha is None else self.alpha * length
            turns.append(cayley(-limited(skew_of(part), limit)))
        return torch.cat([turn.flatten() for turn in turns])

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis, part by part."""
        assert self.turn is not None
        flat = self.turn.split([part.numel() for part in self.parts])
        slices = tensor.split([_rows(part) for part in self.parts], axis)
        products: list[Tensor] = []
        for part, turn, rows in zip(self.parts, flat, slices, strict=True):
            blocks = turn.reshape(part.shape)
            products.append(block_product(blocks.mT if back else blocks, rows, axis))
        return torch.cat(products, axis)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "SplitOft":
        """Returns zero blocks in one part, `rank` of them as in sd-scripts.

        Raises:
            ShapeError: The outputs cannot be split into so many blocks that turn.
        """
        del generator
        size = _size_of_kohya(layer.weight_shape[0], config.rank)
        return cls(torch.zeros(config.rank, size, size), alpha=config.constraint or None)


@dataclass(frozen=True, eq=False)
class PeftOutputOft(Rotation):
    """OFT of PEFT up to 0.13, on the outputs; the last block may reach beyond them."""

    name = "OFT (PEFT to 0.13)"
    roles = (Role("oft_r", (".oft_r", ".oft_r.*")),)
    settings = ("coft_eps",)

    oft_r: Float[Tensor, "N D D"]
    coft_eps: float | None = None
    """The `eps` of PEFT's `coft`, which limits each block."""

    @property
    def span(self) -> int:
        """Rows of one block."""
        return self.oft_r.shape[-1]

    @property
    def length(self) -> int:
        """Rows of all blocks."""
        return _rows(self.oft_r)

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R - 1 of every block."""
        count, size, _ = self.oft_r.shape
        if not 0 < size <= shape[0] or count < 1 or (count > 1 and size != -(-shape[0] // count)):
            raise ShapeError(f"{count} blocks of {size} do not split {shape[0]} outputs")
        return cayley(skew_of(projected(widened(self.oft_r), self.coft_eps)) / 2)

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis, of which R is the upper left part."""
        assert self.turn is not None
        length = tensor.shape[axis]
        count, size, _ = self.turn.shape
        whole = -(-length // (count * size)) * count * size
        padded = F.pad(tensor.movedim(axis, -1), (0, whole - length)).movedim(-1, axis)
        product = block_product(self.turn.mT if back else self.turn, padded, axis)
        return product.narrow(axis, 0, length)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[PeftOutputOft]":
        """Returns the adapter with PEFT's `coft`."""
        del corrections
        return Completion(replace(self, coft_eps=_coft_eps(origin)))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "PeftOutputOft":
        """Returns zero blocks, `rank` of them as far as the outputs allow."""
        del generator
        size = -(-layer.weight_shape[0] // config.rank)
        return cls(torch.zeros(-(-layer.weight_shape[0] // size), size, size))


@dataclass(frozen=True, eq=False)
class PeftInputOft(Rotation):
    """OFT of PEFT 0.14 and 0.15, on the inputs, with stretched rows."""

    name = "OFT (PEFT 0.14)"
    roles = (Role("oft_r", (".oft_r", ".oft_r.*")), Role("oft_s", (".oft_s", ".oft_s.*")))
    settings = ("coft_eps",)
    side = "inputs"

    oft_r: Float[Tensor, "N D D"]
    oft_s: Float[Tensor, "..."]
    coft_eps: float | None = None
    """The `eps` of PEFT's `coft`, which limits each block."""

    @property
    def length(self) -> int:
        """Inputs of all blocks."""
        return _rows(self.oft_r)

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R - 1 of every block."""
        _require_columns(self.oft_r.shape[0], self.oft_r.shape[1], shape)
        return cayley(-skew_of(projected(widened(self.oft_r), self.coft_eps)) / 2)

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis."""
        assert self.turn is not None
        return block_product(self.turn.mT if back else self.turn, tensor, axis)

    def gain(self, shape: tuple[int, ...]) -> Float[Tensor, "..."] | None:
        """Returns `oft_s`."""
        del shape
        return self.oft_s

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[PeftInputOft]":
        """Returns the adapter with PEFT's `coft`."""
        del corrections
        return Completion(replace(self, coft_eps=_coft_eps(origin)))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "PeftInputOft":
        """Returns zero blocks and rows that keep their length.

        Raises:
            ShapeError: The inputs cannot be split into blocks.
        """
        del generator
        columns = math.prod(layer.weight_shape[1:])
        size = even_split(columns, config.rank)
        return cls(torch.zeros(columns // size, size, size), torch.ones(layer.weight_shape[0], 1))


@dataclass(frozen=True, eq=False)
class OftV2(Rotation):
    """OFT of PEFT from 0.16 on and of OneTrainer, on the inputs, stored as vectors.

    OneTrainer turns a convolution the other way, and PEFT does so without the series everywhere:
    what the tensors do not say is taken from the header, or refused.

    Forks of OneTrainer and musubi-tuner add tensors: `alpha` and `oft_block_…` repeat what the
    shape says, DoRA-OFT ("DOFT") stretches rows by `dora_scale / initial_norm`, `dora_multiplier`
    or `exp(dora_log_multiplier)`.
    """

    name = "OFT v2"
    roles = (
        Role("vectors", (".oft_R.weight", ".oft_R.*.weight")),
        Role("scaled", (".oft_R.scaled_oft",), required=False, scalar=True),
        Role("dora_scale", (".dora_scale",), required=False),
        Role("initial_norm", (".initial_norm",), required=False),
        Role("dora_multiplier", (".dora_multiplier",), required=False),
        Role("dora_log_multiplier", (".dora_log_multiplier",), required=False),
        Role("alpha", (".alpha",), required=False, shared=True, scalar=True),
        Role("size_mark", (".oft_block_size_metadata",), required=False, scalar=True),
        Role("share_mark", (".oft_block_share_metadata",), required=False, scalar=True),
        Role("coft_mark", (".oft_coft_metadata",), required=False, scalar=True),
        Role("eps_mark", (".coft_eps_metadata",), required=False, scalar=True),
        Role("scaled_mark", (".scaled_oft_metadata",), required=False, scalar=True),
    )
    settings = ("terms", "doubled", "coft_eps", "kernels")
    side = "inputs"

    vectors: Float[Tensor, "N E"]
    """The strict upper triangles of Q, row by row; one alone is shared by all blocks."""
    scaled: float | None = None
    """OneTrainer: whether they are stored times 2 sqrt(D - 1)."""
    dora_scale: Float[Tensor, "..."] | None = None
    initial_norm: Float[Tensor, "..."] | None = None
    dora_multiplier: Float[Tensor, "..."] | None = None
    dora_log_multiplier: Float[Tensor, "..."] | None = None
    alpha: float | None = None
    """The size of a block, without effect."""
    size_mark: float | None = None
    share_mark: float | None = None
    coft_mark: float | None = None
    eps_mark: float | None = None
    scaled_mark: float | None = None
    terms: int | None = NEUMANN_TERMS
    """Terms of the series, or None for PEFT's exact R = C(-Q)."""
    doubled: bool = False
    """Whether the last term counts twice, as in PEFT 0.16 and 0.17."""
    coft_eps: float | None = None
    """The `eps` of PEFT's `coft`, which limits each block."""
    kernels: Literal["peft", "onetrainer"] | None = None
    """How a convolution is meant: W R^T (PEFT) or W R (OneTrainer). None is not known."""

    @property
    def length(self) -> int:
        """Inputs of all blocks."""
        return self.vectors.shape[0] * self._size()

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R - 1 of every block, or of the one that is shared."""
        size = self._size()
        _require_columns(self.vectors.shape[0], size, shape)
        skew = projected(skew_from_vectors(self.vectors, size), self.coft_eps)
        if self._is_scaled:
            skew = skew / (2 * max(size - 1, 1) ** 0.5)
        if self._turns_back(shape):
            skew = -skew
        if self.terms is None:
            return cayley(-skew)
        if not 0 <= self.terms <= MOST_TERMS:
            raise ShapeError(f"a series of {self.terms} terms, of which {MOST_TERMS} are the most")
        return cayley_neumann(skew, self.terms, doubled=self.doubled)

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis."""
        assert self.turn is not None
        return block_product(self.turn.mT if back else self.turn, tensor, axis)

    def gain(self, shape: tuple[int, ...]) -> Float[Tensor, "..."] | None:
        """Returns the factor of each row that DoRA-OFT stores.

        Raises:
            UndecidedError: A magnitude comes without the norm that it is measured by.
        """
        del shape
        if self.dora_log_multiplier is not None:
            return widened(self.dora_log_multiplier).exp()
        if self.dora_multiplier is not None:
            return self.dora_multiplier
        if self.dora_scale is None:
            return None
        if self.initial_norm is None:
            raise UndecidedError(
                "dora_scale beside oft_R needs initial_norm: nothing says by which norm it was "
                "divided in training. Save the adapter again with the tool that made it."
            )
        scale, norm = widened(self.dora_scale).flatten(), widened(self.initial_norm).flatten()
        return torch.where(norm > 0, scale / norm, torch.ones_like(norm))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[OftV2]":
        """Returns the adapter with the form of the rotation that its maker gives it."""
        del corrections
        coft_eps = self._marked_eps() or _coft_eps(origin)
        if self._is_onetrainers or origin.tool == "onetrainer":
            return Completion(replace(self, kernels="onetrainer", coft_eps=coft_eps))
        series = origin.flag("use_cayley_neumann")
        made = replace(
            self,
            terms=None if series is False else _terms(origin),
            doubled=bool(series) and _before_0_18(origin),
            kernels="peft" if origin.tool == "peft" else None,
            coft_eps=coft_eps,
        )
        assumed = "" if series is not None else "OFT turns by PEFT's series of 5 terms, its default"
        return Completion(made, assumed=assumed)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "OftV2":
        """Returns zero vectors of blocks of `rank` at most, in PEFT's meaning.

        Raises:
            ShapeError: The inputs cannot be split into blocks.
        """
        del generator
        columns = math.prod(layer.weight_shape[1:])
        size = even_split(columns, config.rank)
        return cls(torch.zeros(columns // size, size * (size - 1) // 2), kernels="peft")

    @property
    def _is_scaled(self) -> bool:
        return bool(self.scaled if self.scaled_mark is None else self.scaled_mark)

    @property
    def _is_onetrainers(self) -> bool:
        """Whether there is a tensor that only OneTrainer and what follows it write."""
        marks = (
            *(self.scaled, self.dora_scale, self.dora_multiplier, self.dora_log_multiplier),
            *(self.size_mark, self.share_mark, self.coft_mark, self.eps_mark, self.scaled_mark),
        )
        return any(mark is not None for mark in marks)

    def _marked_eps(self) -> float | None:
        return (self.eps_mark or COFT_EPS) if self.coft_mark else None

    def _size(self) -> int:
        """Returns D of vectors of D (D - 1) / 2 numbers."""
        numbers = self.vectors.shape[1]
        size = (1 + math.isqrt(1 + 8 * numbers)) // 2
        if size * (size - 1) // 2 != numbers:
            raise ShapeError(f"{numbers} numbers are no upper triangle of a square block")
        return size

    def _turns_back(self, shape: tuple[int, ...]) -> bool:
        """Whether W R is meant, and not W R^T."""
        if len(shape) == 2:
            return False
        if self.kernels is None:
            raise UndecidedError(
                "oft_R on a convolution turns one way if PEFT made it and the other way if "
                "OneTrainer did, and nothing in the file tells which. Put PEFT's "
                "adapter_config.json beside the file, or save it again with the tool that made it."
            )
        return self.kernels == "onetrainer"


@dataclass(frozen=True, eq=False)
class OftEmbedding(OftV2):
    """PEFT's OFT v2 on a table of tokens `[T, D]`, whose rows are turned after the lookup: W R."""

    name = "OFT v2 (embedding)"
    roles = (Role("vectors", (".oft_embedding_R.weight", ".oft_embedding_R.*.weight")),)

    def _turns_back(self, shape: tuple[int, ...]) -> bool:
        del shape
        return True


def new_rescale(layer: Layer, config: InitialConfig) -> Tensor | None:
    """Returns the lengths of rows for training, as LyCORIS shapes them, where they are asked for."""
    outputs, *others = layer.weight_shape
    return torch.ones(outputs, *[1] * len(others)) if config.rescaled else None


def _size_of_kohya(outputs: int, count: int) -> int:
    """Returns the size of blocks of which there are `count`.

    Raises:
        ShapeError: They do not divide the outputs, or cannot turn.
    """
    if outputs % count:
        fitting = [n for n in range(1, outputs // 2 + 1) if outputs % n == 0]
        nearest = sorted(sorted(fitting, key=lambda n: abs(n - count))[:4])
        raise ShapeError(
            f"OFT in kohya's form splits outputs into as many blocks as the rank, and {count} does "
            f"not divide {outputs}: choose one that does, near it {', '.join(map(str, nearest))}."
        )
    size = outputs // count
    if size < 2:
        raise ShapeError(
            f"{count} blocks of {outputs} outputs would hold one number each, which cannot turn: "
            f"lower the rank to {outputs // 2} or less"
        )
    return size


def _rows(blocks: Float[Tensor, "N D D"]) -> int:
    return blocks.shape[0] * blocks.shape[1]


def _require_columns(count: int, size: int, shape: tuple[int, ...]) -> None:
    """Checks that blocks, or one that is shared, cover the inputs of a weight."""
    columns = math.prod(shape[1:])
    if count == 1 and size > 0:
        count = columns // size
    require_blocks(count, size, columns, "inputs")


def _terms(origin: Origin) -> int:
    terms = origin.number("num_cayley_neumann_terms")
    if terms is None:
        return NEUMANN_TERMS
    if not 0 <= terms <= MOST_TERMS:
        raise FormatError(
            f"{origin.module}: its configuration asks for a series of {terms:.0f} terms, but the "
            f"rotation is found with {MOST_TERMS} at most. The configuration is damaged."
        )
    return int(terms)


def _before_0_18(origin: Origin) -> bool:
    """Whether PEFT's configuration is of a version that did not yet write its number into it."""
    version = re.match(r"(\d+)\.(\d+)", str(origin.options.get("peft_version")))
    return version is None or (int(version[1]), int(version[2])) < (0, 18)


def _coft_eps(origin: Origin) -> float | None:
    """Returns the limit of constrained OFT by PEFT's or OneTrainer's settings, None without one."""
    if not (origin.flag("coft") or origin.flag("oft_coft")):
        return None
    return origin.number("eps") or origin.number("coft_eps") or COFT_EPS
