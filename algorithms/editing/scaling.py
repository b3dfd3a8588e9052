"""Another strength of an adapter, written into its tensors."""

from dataclasses import replace

from ..adapters import Adapter
from ..adapters.base import widened
from ..adapters.diff import Diff, FullRank
from ..adapters.ia3 import Ia3
from ..adapters.loha import Loha, LohaTucker
from ..adapters.lokr import Lokr
from ..adapters.lora import Lora, LoraTucker
from ..adapters.lora_embedding import LoraEmbedding
from ..adapters.norm import Norm
from ..adapters.tlora import Tlora

BY_ALPHA = (Lora, LoraTucker, LoraEmbedding, Loha, LohaTucker, Tlora)
"""Methods whose whole change, that of the bias too, is times alpha / rank."""
BY_TENSORS: dict[type[Adapter], tuple[str, ...]] = {
    Diff: ("diff", "diff_b"),
    FullRank: ("diff",),
    Norm: ("w_norm", "b_norm"),
    Ia3: ("weight",),
}
"""Methods whose changes are linear in these fields, each in its own."""


def scaled(adapter: Adapter, strength: float) -> Adapter | None:
    """Returns an adapter that is at strength 1 what this one is at another, of the same method.

    Args:
        adapter: The adapter, completed.
        strength: Any but 0, which no alpha says.

    Returns:
        The very same at strength 1; None where the method has no number that does it.
    """
    if strength == 1:
        return adapter
    if isinstance(adapter, BY_ALPHA):
        rank = adapter.rank
        return replace(adapter, alpha=(adapter.alpha or rank) * strength)
    if isinstance(adapter, Lokr):
        if adapter.rank is not None:
            return replace(adapter, alpha=(adapter.alpha or adapter.rank) * strength)
        assert adapter.w1 is not None, "without a rank both sides are whole"
        return replace(adapter, w1=widened(adapter.w1) * strength)
    fields = BY_TENSORS.get(type(adapter))
    if fields is None:
        return None
    found = adapter.tensors()
    return adapter.with_tensors(
        {name: widened(found[name]) * strength for name in fields if name in found}
    )
