"""Embeddings in adapter files: split off, kept, written again."""

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.errors import FormatError, NonFiniteError, ShapeError
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.formats.write import to_tensors


def beside_a_lora(embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "x.lora_up.weight": torch.ones(3, 2),
        "x.lora_down.weight": torch.ones(2, 5),
    } | embeddings


@pytest.mark.parametrize(
    ("key", "name", "encoder"),
    [
        ("bundle_emb.my.cat.string_to_param.*", "my.cat", ""),
        ("bundle_emb.<cat>.clip_l", "<cat>", "clip_l"),
        ("bundle_emb.<cat>.clip_g_out", "<cat>", "clip_g_out"),
        ("emb_params", "style", ""),
        ("clip_g", "style", "clip_g"),
    ],
)
def test_every_spelling_is_split_off_and_written_again(key: str, name: str, encoder: str) -> None:
    vectors = torch.rand(2, 768)
    parsed = parse_tensors(beside_a_lora({key: vectors}), {}, "dir/style.safetensors")
    assert set(parsed.adapters) == {"x"}
    assert not parsed.unclaimed
    assert torch.equal(parsed.embeddings[name][encoder], vectors)
    tensors, _ = to_tensors(parsed)
    again = parse_tensors(tensors, {}, "other.safetensors")
    assert torch.equal(again.embeddings[name][encoder], vectors)


def test_the_encoders_of_one_word_stay_together() -> None:
    parts = {"bundle_emb.cat.clip_l": torch.rand(768), "bundle_emb.cat.clip_g": torch.rand(1, 1280)}
    embeddings = parse_tensors(beside_a_lora(parts), {}, "a").embeddings
    assert {key: tuple(one.shape) for key, one in embeddings["cat"].items()} == {
        "clip_l": (1, 768),
        "clip_g": (1, 1280),
    }


@pytest.mark.parametrize("key", ["bundle_emb.cat.clip_l", "bundle_emb.cat.string_to_param.*"])
def test_a_file_of_embeddings_alone_is_no_adapter(key: str) -> None:
    with pytest.raises(FormatError, match="textual inversion embedding, not an adapter"):
        parse_tensors({key: torch.rand(2, 768)}, {}, "a")


def test_a_damaged_embedding_is_refused() -> None:
    key = "bundle_emb.cat.clip_l"
    with pytest.raises(ShapeError, match=r"bundle_emb\.cat\.clip_l has shape \[1, 2, 3\]"):
        parse_tensors(beside_a_lora({key: torch.ones(1, 2, 3)}), {}, "a")
    with pytest.raises(NonFiniteError, match="embedding cat clip_l contains NaN"):
        parse_tensors(beside_a_lora({key: torch.full((2, 768), torch.nan)}), {}, "a")
