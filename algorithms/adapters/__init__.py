"""The methods: one file each, listed here and nowhere else."""

from .base import Adapter, Role
from .boft import Boft, PeftBoft
from .diff import Diff
from .dora import Dora
from .loha import Loha, LohaTucker
from .lokr import Lokr
from .lora import Lora, LoraTucker
from .norm import Norm
from .oft import DiagOft, OftEmbedding, OftV2, PeftInputOft, PeftOutputOft, SplitOft

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
    OftEmbedding,
    Boft,
    PeftBoft,
)


def by_name(name: str) -> type[Adapter]:
    """Returns the method of this name.

    Raises:
        KeyError: There is none.
    """
    return {adapter.name: adapter for adapter in ADAPTERS}[name]
