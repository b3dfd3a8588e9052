"""What a file of ours says of its adapters besides their tensors."""

import json
from typing import Any

import pytest
import torch

from anyadapter.algorithms.errors import FormatError, ShapeError
from anyadapter.algorithms.formats.metadata import SETTLED
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import settled, to_tensors

OFT = {f"{name}.oft_R.weight": torch.ones(2, 3) for name in ("unet.a", "unet.b", "text_encoder.c")}
CONFIG = {
    "unet.peft_type": "OFT",
    "unet.use_cayley_neumann": False,
    "text_encoder.peft_type": "OFT",
    "text_encoder.num_cayley_neumann_terms": 7,
    "text_encoder.use_cayley_neumann": True,
    "text_encoder.peft_version": "0.19.0",
}


def made() -> AdapterSet:
    strings = {"lora_adapter_metadata": json.dumps(CONFIG)}
    return parse_tensors(OFT, strings, "oft").as_trained()


def with_settings(said: Any) -> AdapterSet:
    return parse_tensors(OFT, {SETTLED: json.dumps(said)}, "oft")


def test_the_usual_settings_are_said_once() -> None:
    text = settled(made()).metadata.strings[SETTLED]
    unet = {"terms": None, "kernels": "peft"}
    text_encoder = {"terms": 7, "kernels": "peft"}
    methods = {"OFT v2": {"usual": unet, "others": {"text_encoder.c": text_encoder}}}
    assert json.loads(text) == {"version": 1, "methods": methods}


def test_settings_hold_under_other_names_and_beside_another_configuration() -> None:
    renamed = settled(made())
    tensors, strings = to_tensors(renamed)
    beside = {"peft_type": "OFT", "num_cayley_neumann_terms": 2}
    again = parse_tensors(tensors, strings, "saved", beside)
    assert not again.notes
    assert not again.metadata.config
    for module, (adapter,) in again.as_trained().adapters.items():
        (before,) = made().adapters[module]
        assert adapter.unstored() == before.unstored() != {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"version": 2, "methods": {}}, "version 2, and only 1 .* Update Any Adapter"),
        ([], "version None"),
        ({"version": 1}, "is damaged"),
        ({"version": 1, "methods": {"OFT v2": 3}}, "is damaged"),
        ({"version": 1, "methods": {"OFT v2": {"usual": {}}}}, "is damaged"),
        ({"version": 1, "methods": {"OFT v2": {"usual": {}, "others": {"a": 1}}}}, "is damaged"),
        (
            {"version": 1, "methods": {"OFT v2": {"usual": {"terms": [1]}, "others": {}}}},
            "is damaged",
        ),
        *(
            ({"version": 1, "methods": {"OFT v2": {"usual": said, "others": {}}}}, "cannot have")
            for said in (
                *({"terms": "5"}, {"terms": 5.5}, {"kernels": "kohya"}),
                *({"doubled": 1}, {"doubled": None}, {"terms": 2**63}),
                *({"coft_eps": float("inf")}, {"coft_eps": float("nan")}),
            )
        ),
        *(
            ({"version": 1, "methods": {"OFT v2": {"usual": said, "others": {}}}}, "later version")
            for said in ({"turn": None}, {"vectors": 1}, {"odd": 1}, {"kernels": "kohya"})
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(said: Any, message: str) -> None:
    with pytest.raises(FormatError, match=f"^oft cannot be loaded: .*{message}"):
        with_settings(said).as_trained()


def test_a_number_of_the_wrong_kind_is_damage_and_no_later_version() -> None:
    said = {"version": 1, "methods": {"OFT v2": {"usual": {"terms": 5.5}, "others": {}}}}
    with pytest.raises(FormatError, match="is damaged: save or download") as caught:
        with_settings(said).as_trained()
    assert "version" not in str(caught.value)


@pytest.mark.parametrize("topk", [-1, 0, 7])
def test_a_choice_of_none_or_of_more_than_there_are_is_refused(topk: int) -> None:
    logits = {f"m.vblora_logits_{one}": torch.ones(2, 2, 6) for one in "AB"}
    file = logits | {"vblora_vector_bank": torch.ones(6, 4)}
    table = {"usual": {"topk": topk}, "others": {}}
    said = {SETTLED: json.dumps({"version": 1, "methods": {"VB-LoRA": table}})}
    ((adapter,),) = parse_tensors(file, said, "a").as_trained().adapters.values()
    with pytest.raises(ShapeError, match=f"it mixes {topk} vectors of a bank of 6"):
        adapter.check((8, 8))
    with pytest.raises(ShapeError, match=f"it mixes {topk} vectors of a bank of 6"):
        adapter.prepared(torch.ones(8, 8))


def test_settings_of_modules_that_were_renamed_are_told() -> None:
    tensors, strings = to_tensors(settled(made()))
    renamed = {key.replace("text_encoder.c", "lora_te_c"): one for key, one in tensors.items()}
    (note,) = parse_tensors(renamed, strings, "a").as_trained().notes
    assert "settings for 1 module that the file does not have: text_encoder.c" in note
    assert parse_tensors(tensors, strings, "a").as_trained().notes == ()


def test_an_alpha_is_written_even_where_it_is_the_rank() -> None:
    """LyCORIS fails without one."""
    tensors = {"a.lora_up.weight": torch.ones(4, 2), "a.lora_down.weight": torch.ones(2, 3)}
    magnitudes = {"a.dora_scale": torch.ones(4, 1)}
    for file in (tensors, tensors | magnitudes):
        written, _ = to_tensors(settled(parse_tensors(file, {}, "a").as_trained()))
        assert float(written["a.alpha"]) == 2.0


def test_magnitudes_of_peft_are_written_as_those_that_stand_beside_lora_up() -> None:
    for tensors in (
        {"lora_A.weight": (2, 3), "lora_B.weight": (4, 2), "lora_magnitude_vector": (4,)},
        {
            "lora_A.weight": (2, 3, 1, 1),
            "lora_B.weight": (4, 2, 1, 1),
            "lora_magnitude_vector": (1, 4, 1, 1),
        },
    ):
        file = {f"a.{name}": torch.ones(shape) for name, shape in tensors.items()}
        written, _ = to_tensors(settled(parse_tensors(file, {}, "a").as_trained()))
        axes = len(tensors["lora_A.weight"])
        assert written["a.dora_scale"].shape == (4, *[1] * (axes - 1))
        assert {key.partition(".")[2] for key in written} == {
            *("lora_up.weight", "lora_down.weight", "alpha", "dora_scale")
        }


def test_what_no_file_says_is_still_said_to_the_user() -> None:
    shapes = {"q_layer.weight": (2, 3), "p_layer.weight": (4, 2), "lambda_layer": (1, 2)}
    file = {f"a.{name}": torch.ones(shape) for name, shape in shapes.items()}
    again = parse_tensors(*to_tensors(settled(parse_tensors(file, {}, "a"))), "a").as_trained()
    (note,) = again.notes
    assert "that the model is the very one" in note
