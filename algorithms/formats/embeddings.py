"""Textual inversions that lie in an adapter file: new words, with their vectors for text encoders.

Spellings: `bundle_emb.NAME.string_to_param.*` (AUTOMATIC1111), `bundle_emb.NAME.clip_l` and so on
(OneTrainer; `clip_l_out` are vectors for the output of an encoder), and, without a name of their
own, `emb_params`, `clip_l` or `clip_g` (ai-toolkit): these are called as the file.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from torch import Tensor

from ..errors import ShapeError

Embeddings = Mapping[str, Mapping[str, Tensor]]
"""Name -> encoder -> vectors `[T, C]`; the encoder is empty where the file does not name it."""

PREFIX = "bundle_emb."
ANY_ENCODER = ".string_to_param.*"
UNNAMED = {"emb_params": "", "clip_l": "clip_l", "clip_g": "clip_g"}
"""Whole key -> encoder."""


def is_embedding(key: str) -> bool:
    """Whether a tensor belongs to a textual inversion."""
    return key in UNNAMED or (key.startswith(PREFIX) and "." in key.removeprefix(PREFIX))


def split_embeddings(
    tensors: Mapping[str, Tensor], source: str
) -> tuple[list[str], dict[str, dict[str, Tensor]]]:
    """Returns the keys of everything else, and the textual inversions.

    Raises:
        ShapeError: A tensor is not one vector or several.
    """
    rest: list[str] = []
    embeddings: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not is_embedding(key):
            rest.append(key)
            continue
        if tensor.ndim not in (1, 2):
            raise ShapeError(
                f"{source}: the embedding {key} has shape {list(tensor.shape)}; vectors [T, C] are "
                "expected. The file is damaged or of an unknown variant."
            )
        name, encoder = _named(key, source)
        embeddings.setdefault(name, {})[encoder] = tensor.reshape(-1, tensor.shape[-1])
    return rest, embeddings


def embedding_tensors(embeddings: Embeddings) -> Iterable[tuple[str, Tensor]]:
    """Yields (key, tensor) for a file that holds these textual inversions."""
    for name, vectors in embeddings.items():
        for encoder, tensor in vectors.items():
            yield PREFIX + name + (f".{encoder}" if encoder else ANY_ENCODER), tensor


def _named(key: str, source: str) -> tuple[str, str]:
    """Returns name and encoder of a key."""
    if key in UNNAMED:
        return PurePath(source).stem, UNNAMED[key]
    named = key.removeprefix(PREFIX)
    if named.endswith(ANY_ENCODER):
        return named.removesuffix(ANY_ENCODER), ""
    name, _, encoder = named.rpartition(".")
    return name, encoder
