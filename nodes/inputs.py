"""Inputs that several nodes have: how adapters are applied, and how large they become."""

from collections.abc import Sequence

from comfy_api.latest import io

from ..algorithms.editing.accuracy import EXACT
from ..algorithms.editing.size import Size
from .host.memory import AUTOMATIC
from .schema import advanced

AS_TRAINED, AS_OTHERS = "as trained", "as other loaders do"
ALL, RANK, ENERGY, ERROR = "all of it", "rank", "kept energy", "error"
SIZES = (RANK, ENERGY, ERROR)
LARGEST_RANK = 8192


def scale_input() -> io.Combo.Input:
    """Returns the choice between the scale of the training and that of other loaders."""
    return advanced(
        io.Combo.Input(
            "scale",
            options=[AS_TRAINED, AS_OTHERS],
            default=AS_TRAINED,
            tooltip="Some tools save files that act weaker in every loader than in training. Where "
            "the metadata prove it, this is corrected and the report says so; the second choice "
            "leaves it as it is elsewhere.",
        )
    )


def mode_input() -> io.Combo.Input:
    """Returns the choice between hooks and patches."""
    return advanced(
        io.Combo.Input(
            "mode",
            options=["hook", "patch"],
            default="hook",
            tooltip="hook computes the change beside each layer and leaves the weights alone, so "
            "another strength costs nothing. patch changes the weights as ComfyUI's own loader "
            "does, for saving or compiling the model.",
        )
    )


def memory_input() -> io.Int.Input:
    """Returns the bound of the memory for built weights."""
    return advanced(
        io.Int.Input(
            "memory_mb",
            default=AUTOMATIC,
            min=AUTOMATIC,
            max=1 << 20,
            optional=True,
            tooltip="Memory in MB for weights that hooks have built and would build again at each "
            "step. -1 takes a twentieth of what is free; 0 keeps none.",
        )
    )


def size_inputs(
    *,
    of: str,
    others: str = "",
    choices: Sequence[str] = SIZES,
    kept_energy: float = 0.99,
    error: float = 0.05,
) -> list[io.Input]:
    """Returns the choice of what decides the ranks of an adapter, with the number of each.

    Args:
        of: What has this size, as the first sentence of the tooltip.
        others: A sentence on each choice that not all nodes have.
        choices: The first one is there at first.
        kept_energy: That number at first.
        error: That number at first.
    """
    tooltip = (
        f"{of} rank: the same in every layer. kept energy and error: in each layer as many ranks as "
        f"it takes to keep a share of its change, or to stay below an error. {others}"
    )
    return [
        io.Combo.Input(
            "size", options=[*choices], default=choices[0], tooltip=tooltip.removesuffix(" ")
        ),
        io.Int.Input(
            "rank",
            default=32,
            min=1,
            max=LARGEST_RANK,
            tooltip="For size rank: of every layer. One that has fewer keeps its own.",
        ),
        io.Float.Input(
            "kept_energy",
            default=kept_energy,
            min=0.01,
            max=1.0,
            step=0.001,
            tooltip="For size kept energy: share of the squared change of each layer that is kept at "
            "least.",
        ),
        io.Float.Input(
            "error",
            default=error,
            min=0.0,
            max=0.99,
            step=0.001,
            tooltip="For size error: what each layer loses at most, as a share of its change. 0.05 is "
            "5 %.",
        ),
    ]


def size_limits() -> list[io.Input]:
    """Returns what else bounds the ranks of an adapter."""
    return [
        advanced(
            io.Int.Input(
                "largest_rank",
                default=0,
                min=0,
                max=LARGEST_RANK,
                tooltip="No layer gets more ranks than this, whatever the error. 0 sets no limit.",
            )
        ),
        advanced(
            io.Int.Input(
                "conv_rank",
                default=0,
                min=0,
                max=LARGEST_RANK,
                tooltip="A rank of its own for convolutions with a kernel (3x3). 0 treats them as all "
                "other layers.",
            )
        ),
    ]


def chosen_size(
    size: str, *, rank: int, kept_energy: float, error: float, largest_rank: int, conv_rank: int
) -> Size:
    """Returns the size that the values of these inputs mean."""
    most, kernel_rank = largest_rank or None, conv_rank or None
    if size == RANK:
        return Size(rank=rank, most=most, kernel_rank=kernel_rank)
    if size == ENERGY:
        return Size(energy=kept_energy, most=most, kernel_rank=kernel_rank)
    allowed = EXACT if size == ALL else error
    return Size(error=allowed, most=most, kernel_rank=kernel_rank)
