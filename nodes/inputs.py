"""Inputs that several nodes have: how adapters are applied, and with how much memory."""

from comfy_api.latest import io

from .host.memory import AUTOMATIC
from .schema import advanced


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
