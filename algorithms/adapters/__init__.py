"""The methods: one file each, listed here and nowhere else."""

from .adalora import AdaLora
from .base import Adapter, Role
from .beft import Beft
from .boft import Boft, PeftBoft
from .c3a import C3a
from .deft import Deft
from .delora import DeLora
from .diff import Diff, FullRank
from .dora import Dora
from .fourierft import FourierFt
from .glora import Glora, GloraOld
from .glora_peft import GloraPeft
from .gralora import GraLora
from .hira import Hira, HiraEmbedding
from .hra import Hra
from .ia3 import Ia3, Ia3Peft
from .ln_tuning import LnTuning
from .loha import Loha, LohaTucker
from .lokr import Lokr
from .lora import Lora, LoraTucker
from .lora_embedding import LoraEmbedding
from .miss import Miss, MissBat
from .norm import Norm
from .oft import DiagOft, OftEmbedding, OftV2, PeftInputOft, PeftOutputOft, SplitOft
from .osf import Osf
from .peanut import Peanut
from .pvera import Pvera
from .randlora import RandLora
from .replacement import Replacement
from .road import Road
from .shira import Shira
from .supertuning import SuperTuning
from .tlora import Tlora
from .unilora import UniLora
from .vblora import VbLora, VbLoraTopk
from .vera import Vera
from .waveft import WaveFt

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
    Glora,
    GloraOld,
    Ia3,
    Ia3Peft,
    Tlora,
    FullRank,
    Replacement,
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
