"""The methods: one file each, listed here and nowhere else."""

from .adalora import AdaLora
from .base import Adapter, Role
from .beft import Beft
from .c3a import C3a
from .deft import Deft
from .delora import DeLora
from .diff import Diff
from .dora import Dora
from .fourierft import FourierFt
from .glora_peft import GloraPeft
from .gralora import GraLora
from .hira import Hira, HiraEmbedding
from .hra import Hra
from .ln_tuning import LnTuning
from .lora import Lora, LoraTucker
from .lora_embedding import LoraEmbedding
from .miss import Miss, MissBat
from .norm import Norm
from .osf import Osf
from .peanut import Peanut
from .pvera import Pvera
from .randlora import RandLora
from .road import Road
from .shira import Shira
from .supertuning import SuperTuning
from .unilora import UniLora
from .vblora import VbLora, VbLoraTopk
from .vera import Vera
from .waveft import WaveFt

__all__ = ["ADAPTERS", "Adapter", "Role", "by_name"]

ADAPTERS: tuple[type[Adapter], ...] = (
    Lora,
    LoraTucker,
    Dora,
    Diff,
    Norm,
    AdaLora,
    Beft,
    C3a,
    Deft,
    DeLora,
    FourierFt,
    GloraPeft,
    GraLora,
    Hira,
    HiraEmbedding,
    Hra,
    LnTuning,
    LoraEmbedding,
    Miss,
    MissBat,
    Osf,
    Peanut,
    Pvera,
    RandLora,
    Road,
    Shira,
    SuperTuning,
    UniLora,
    VbLora,
    VbLoraTopk,
    Vera,
    WaveFt,
)


def by_name(name: str) -> type[Adapter]:
    """Returns the method of this name.

    Raises:
        KeyError: There is none.
    """
    return {adapter.name: adapter for adapter in ADAPTERS}[name]
