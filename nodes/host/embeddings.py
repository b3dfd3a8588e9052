"""Textual inversions of an adapter file, offered to the prompts of one CLIP."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from comfy.sd import CLIP
from torch import Tensor

from ...algorithms.formats.embeddings import Embeddings

Find = Callable[[str], tuple[Any, ...]]
"""The host's look-up: the text after `embedding:` -> vectors or None, ..., the text that is left."""


def offer(clip: CLIP, embeddings: Embeddings) -> tuple[CLIP, list[str], list[str]]:
    """Returns a clone of a CLIP whose prompts know the embeddings.

    Clones share their tokenizer, and so do other branches of a workflow: the clone gets a copy of
    it, with copies of the tokenizers of the single text encoders that it is made of.

    Returns:
        The clone (or `clip`, where nothing fits), the words that it knows, and what fits none of
        its encoders: `NAME (encoder, width)`.
    """
    tokenizer = copy.copy(clip.tokenizer)
    encoders = {name: copy.copy(part) for name, part in vars(tokenizer).items() if _looks_up(part)}
    words = {name: "_".join(name.split()) for name in embeddings}  # a blank ends a word
    used: set[tuple[str, str]] = set()
    for attribute, part in encoders.items():
        vectors: dict[str, Tensor] = {}
        for name, by_encoder in embeddings.items():
            encoder = _fitting(part, by_encoder, alone=len(encoders) == 1)
            if encoder is not None:
                vectors[words[name]] = by_encoder[encoder].float()
                used.add((name, encoder))
        part._try_get_embedding = _Lookup(vectors, part._try_get_embedding)
        if part.embedding_directory is None:
            part.embedding_directory = []  # None would skip the look-up
        setattr(tokenizer, attribute, part)
    refused = [
        f"{name} ({encoder or 'any encoder'}, {tensor.shape[-1]} wide)"
        for name, by_encoder in embeddings.items()
        for encoder, tensor in by_encoder.items()
        if (name, encoder) not in used
    ]
    if not used:
        return clip, [], refused
    clip = clip.clone()
    clip.tokenizer = tokenizer
    offered = dict.fromkeys(name for name, _ in used)
    return clip, [word for name, word in words.items() if name in offered], refused


class _Lookup:
    """Finds the embeddings of a file, and leaves all other words to the host."""

    def __init__(self, vectors: Mapping[str, Tensor], otherwise: Find) -> None:
        self._vectors = vectors
        self._otherwise = otherwise

    def __call__(self, embedding_name: str) -> tuple[Any, ...]:
        """Returns the vectors of the first word and what else the host returns.

        That is the text behind it, and in ComfyUI 0.28 the cleaned word before that.
        """
        answer = self._otherwise(embedding_name)
        _, *cleaned, leftover = answer
        word: str = cleaned[0] if cleaned else embedding_name.split()[0]
        vectors = self._vectors.get(word, self._vectors.get(word.strip(",")))
        return answer if vectors is None else (vectors, *cleaned, leftover)


def _looks_up(part: Any) -> bool:
    """Whether this is a tokenizer of the host that knows embeddings."""
    needed = ("_try_get_embedding", "embedding_key", "embedding_size", "embedding_directory")
    return all(hasattr(part, name) for name in needed)


def _fitting(part: Any, by_encoder: Mapping[str, Tensor], *, alone: bool) -> str | None:
    """Returns which vectors of an embedding are for the encoder of a tokenizer.

    Trainers and the host name some encoders otherwise (`t5`, `t5xxl`), and the only encoder of a
    model takes what has its width.
    """
    fitting = [
        encoder
        for encoder, tensor in by_encoder.items()
        if tensor.shape[-1] == part.embedding_size and not encoder.endswith("_out")
    ]
    named = [encoder for encoder in fitting if encoder and part.embedding_key.startswith(encoder)]
    unnamed = fitting if alone else [encoder for encoder in fitting if not encoder]
    return next(iter([*named, *unnamed]), None)
