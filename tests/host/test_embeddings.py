"""Embeddings of an adapter file in the prompts of one CLIP, with the host's own tokenizers."""

from typing import Any

import pytest
import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SD1Tokenizer
from comfy.sdxl_clip import SDXLTokenizer
from torch import Tensor

from anyadapter.nodes.host.embeddings import offer


class Patcher:
    """Stands for the model patcher, which a clone of CLIP clones: not looked at here."""

    def clone(self, **_: object) -> "Patcher":
        return self


def clip_with(tokenizer: Any) -> CLIP:
    clip = CLIP(no_init=True)
    clip.tokenizer = tokenizer
    clip.patcher = Patcher()
    clip.cond_stage_model = clip.layer_idx = clip.apply_hooks_to_conds = None
    clip.tokenizer_options = {}
    clip.use_clip_schedule = False
    return clip


def vectors(clip: CLIP, text: str, encoder: str = "l") -> list[Tensor]:
    """Returns what stands in a prompt in place of tokens."""
    (tokens,) = clip.tokenize(text)[encoder]
    return [token for token, _ in tokens if isinstance(token, Tensor)]


def words(clip: CLIP, text: str, encoder: str = "l") -> list[int]:
    (tokens,) = clip.tokenize(text)[encoder]
    return [token for token, _ in tokens if not isinstance(token, Tensor) and token < 49406]


L, G = torch.randn(2, 768), torch.randn(3, 1280)


@pytest.fixture(scope="module")
def sd1() -> CLIP:
    return clip_with(SD1Tokenizer())


@pytest.fixture(scope="module")
def sdxl() -> CLIP:
    return clip_with(SDXLTokenizer(embedding_directory="nowhere"))


@pytest.mark.parametrize("encoder", ["", "clip_l"])
def test_a_prompt_finds_the_vectors_by_name(sd1: CLIP, encoder: str) -> None:
    clip, offered, refused = offer(sd1, {"cat": {encoder: L}})
    assert (offered, refused) == (["cat"], [])
    assert torch.equal(torch.stack(vectors(clip, "a embedding:cat here")), L)
    assert words(clip, "a embedding:cat here") == words(sd1, "a here")
    assert torch.equal(torch.stack(vectors(clip, "(embedding:cat:1.2)")), L)
    assert words(clip, "embedding:cat, here") == words(sd1, ", here")
    assert vectors(clip, "embedding:dog cat") == []


def test_the_original_and_earlier_clones_do_not_know_the_name(sd1: CLIP) -> None:
    clone = sd1.clone()
    clip, _, _ = offer(sd1, {"cat": {"": L}})
    later = clip.clone()
    assert vectors(sd1, "embedding:cat") == vectors(clone, "embedding:cat") == []
    assert len(vectors(later, "embedding:cat")) == 2


def test_a_second_file_adds_its_names(sd1: CLIP) -> None:
    first, _, _ = offer(sd1, {"cat": {"": L}})
    second, _, _ = offer(first, {"dog": {"": L[:1]}})
    assert len(vectors(second, "embedding:cat embedding:dog")) == 3
    assert vectors(first, "embedding:dog") == []


def test_each_encoder_gets_its_own_vectors(sdxl: CLIP) -> None:
    clip, offered, refused = offer(sdxl, {"cat": {"clip_l": L, "clip_g": G}})
    assert (offered, refused) == (["cat"], [])
    assert torch.equal(torch.stack(vectors(clip, "embedding:cat")), L)
    assert torch.equal(torch.stack(vectors(clip, "embedding:cat", "g")), G)
    assert vectors(sdxl, "embedding:cat", "g") == []


def test_what_does_not_fit_is_named(sd1: CLIP) -> None:
    clip, offered, refused = offer(
        sd1, {"cat": {"clip_l": L, "clip_g": G, "clip_l_out": L}, "dog": {"": G}}
    )
    assert offered == ["cat"]
    assert refused == [
        "cat (clip_g, 1280 wide)",
        "cat (clip_l_out, 768 wide)",
        "dog (any encoder, 1280 wide)",
    ]
    assert len(vectors(clip, "embedding:cat")) == 2
    same, offered, _ = offer(sd1, {"dog": {"": G}})
    assert same is sd1
    assert offered == []


def test_a_name_with_blanks_is_written_with_underscores(sd1: CLIP) -> None:
    clip, offered, _ = offer(sd1, {"my cat": {"": L}})
    assert offered == ["my_cat"]
    assert len(vectors(clip, "embedding:my_cat")) == 2
