"""The methods: one file each, listed here and nowhere else."""

from .base import Adapter, Role
from .boft import Boft, PeftBoft
from .diff import Diff, FullRank
from .dora import Dora
from .glora import Glora, GloraOld
from .ia3 import Ia3, Ia3Peft
from .loha import Loha, LohaTucker
from .lokr import Lokr
from .lora import Lora, LoraTucker
from .norm import Norm
from .oft import DiagOft, OftV2, PeftInputOft, PeftOutputOft, SplitOft
from .replacement import Replacement
from .tlora import Tlora

__all__ = ["ADAPTERS", "Adapter", "Role", "by_name"]

ADAPTERS: tuple[type[Adapter], ...] = (
    Lora,
    LoraTucker,
    Loha,
    LohaTucker,
    Lokr,
    Dora,
    Diff,
    Norm,
    DiagOft,
    SplitOft,
    PeftOutputOft,
    PeftInputOft,
    OftV2,
    Boft,
    PeftBoft,
    Glora,
    GloraOld,
    Ia3,
    Ia3Peft,
    Tlora,
    FullRank,
    Replacement,
)


def by_name(name: str) -> type[Adapter]:
    """Returns the method of this name.

    Raises:
        KeyError: There is none.
    """
    return {adapter.name: adapter for adapter in ADAPTERS}[name]
