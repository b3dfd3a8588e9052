"""Texts of block weights: what they mean block by block, and what is refused."""

from typing import Any

import pytest

from anyadapter.algorithms.block_weights import BlockWeights, PlacedWeights
from anyadapter.algorithms.errors import BlockWeightsError
from anyadapter.algorithms.families import FAMILIES
from anyadapter.algorithms.families.blocks import BlockMap, Place, blocks_of_file

BY_NAME = {family.name: family for family in FAMILIES}
ENCODER = "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
LBW_17 = ["BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00"] + [
    f"OUT{n:02}" for n in range(3, 12)
]


def blocks_of(family: str, *modules: str) -> BlockMap:
    return blocks_of_file([*modules, ENCODER], BY_NAME[family])


SD1 = blocks_of(
    "SD 1.x",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "lora_unet_middle_block_1_proj_in",
)
SDXL = blocks_of("SDXL", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k")
FLUX = blocks_of("Flux", "lora_unet_double_blocks_0_img_attn_qkv")
WAN = blocks_of("Wan", *[f"lora_unet_blocks_{number}_self_attn_q" for number in (0, 29)])


def placed(text: str, blocks: BlockMap = SD1, seed: int = 0, **presets: str) -> PlacedWeights:
    return BlockWeights.parse(text, presets.get).on(blocks, seed)


def values(text: str, blocks: BlockMap = SD1, **options: Any) -> dict[str, float]:
    """The weights that are not 1."""
    weights = placed(text, blocks, **options)
    every = {block: weights.of_block(block) for block in blocks.blocks}
    return {block: value for block, value in every.items() if value != 1}


def test_an_empty_text_leaves_all_at_1():
    assert values("") == values(" \n ") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IN04:0.5", {"IN04": 0.5}),
        ("in4 : -0.5", {"IN04": -0.5}),
        ("IN4:-.5", {"IN04": -0.5}),
        ("IN04-IN06:2", {"IN04": 2, "IN05": 2, "IN06": 2}),
        ("IN06-IN04:2", {"IN04": 2, "IN05": 2, "IN06": 2}),
        ("IN11-OUT00:0", {"IN11": 0, "M00": 0, "OUT00": 0}),
        ("MID:0", {"M00": 0}),
        ("M00:0.25\nBASE:0", {"M00": 0.25, "BASE": 0}),
        ("MID00:3", {"M00": 3}),
        ("IN04:0.5, IN04:0.75", {"IN04": 0.75}),
    ],
)
def test_names_mean_their_blocks(text: str, expected: dict[str, float]):
    assert values(text) == expected


def test_a_group_is_all_its_blocks():
    assert values("OUT:0") == {f"OUT{number:02}": 0 for number in range(12)}
    assert set(values("TE:0")) == {*(f"L{number:02}" for number in range(12)), "LBASE"}
    assert values("CLIP:0") == values("L:0") == values("TE:0")
    assert set(values("EARLY:0", WAN)) == {f"B{number:02}" for number in range(10)}
    assert set(values("DOUBLE:0", FLUX)) == {f"D{number:02}" for number in range(19)}
    assert values("IN:0", FLUX) == {"IN": 0}


def test_what_is_closer_counts_whatever_its_place_in_the_text():
    assert values("IN04:0.5, IN:0, ALL:1") == values("ALL:1, IN:0, IN04:0.5")
    assert values("IN04:0.5, ALL:0, IN:1")["IN04"] == 0.5
    assert values("ALL:0, TE:1, L03:0.5")["L03"] == 0.5


def test_parts_count_before_their_block():
    weights = placed("IN04:0.5, IN04.attn2:0, ALL.attn1.q:2")
    assert weights.of_part("IN04", "attn2.k") == 0
    assert weights.of_part("IN04", "attn1.q") == 2
    assert weights.of_part("IN04", "attn1.k") == 0.5
    assert weights.of_part("IN04", "attn20") == 0.5
    assert weights.of_block("IN04") == 0.5


def test_a_list_of_17_means_the_blocks_of_sd1_without_convolutions():
    numbers = [number / 10 for number in range(17)]
    expected = dict(zip(LBW_17[1:], numbers[1:], strict=True))
    expected |= dict.fromkeys(["BASE", "LBASE", *(f"L{n:02}" for n in range(12))], 0.0)
    weights = placed(",".join(map(str, numbers)))
    assert {block: weights.of_block(block) for block in expected} == expected
    # What the list says nothing of is 0, as it is there.
    assert [weights.of_block(block) for block in ("IN00", "IN03", "OUT02")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("count", "blocks", "at", "block"),
    [
        (12, SDXL, 5, "M00"),
        (12, SD1, 11, "OUT05"),
        (20, SDXL, 19, "OUT08"),
        (20, SDXL, 1, "IN00"),
        (26, SD1, 25, "OUT11"),
        (27, SD1, 15, "OUT00"),
        (21, SDXL, 20, "OUT08"),
        (61, FLUX, 2, "IN"),
        (61, FLUX, 3, "D00"),
        (61, FLUX, 59, "S37"),
        (61, FLUX, 60, "OUT"),
        (61, FLUX, 0, "L00"),
        (58, FLUX, 20, "S00"),
        (20, FLUX, 19, "D18"),
        (20, FLUX, 19, "S30"),
        (31, WAN, 30, "B29"),
        (31, WAN, 0, "IN"),
    ],
)
def test_a_number_of_a_list_is_for_its_block(count: int, blocks: BlockMap, at: int, block: str):
    numbers = ["0"] * count
    numbers[at] = "0.5"
    assert placed(",".join(numbers), blocks).of_block(block) == 0.5
    numbers[at] = "0"
    assert placed(",".join(numbers), blocks).of_block(block) == 0


def test_the_middle_block_counts_three_times_in_lists_of_inspire():
    numbers = ["1"] * 27
    numbers[13] = "0.25"
    weights = placed(",".join(numbers))
    place = Place("M00", "proj")
    names = "diffusion_model.middle_block.{}.proj_in.weight"
    layers = [weights.of_layer(place, ("m", names.format(number))) for number in range(3)]
    assert layers == [1, 0.25, 1]
    assert weights.by_layer == [
        f"M00:middle_block_{at}_:{v}" for at, v in ((0, 1), (1, 0.25), (2, 1))
    ]
    # Three alike are a value of the block, which a later one replaces.
    assert values(",".join(["1"] * 27) + ", M00:0.5") == {"IN00": 0, "M00": 0.5}


def test_a_list_that_fits_nothing_names_those_that_would():
    with pytest.raises(BlockWeightsError, match=r"list of 13 .* 12, 17, 20, 21, 26, 27 numbers"):
        values(",".join(["1"] * 13))
    with pytest.raises(BlockWeightsError, match=r"list of 17 .* 20, 58, 61 numbers"):
        values(",".join(["1"] * 17), FLUX)


def test_names_may_follow_a_list():
    assert values(",".join(["1"] * 26) + ", IN04:0.5") == {"IN04": 0.5}


def test_empty_places_between_lines_say_nothing():
    assert values("IN04:0.5,\n\nMID:0,") == {"IN04": 0.5, "M00": 0}
    assert values(",".join(["1"] * 26) + ",\n, IN04:0.5") == {"IN04": 0.5}


def test_a_line_of_a_presets_file_is_read():
    assert values("MIDD:" + ",".join(["1"] * 26)) == {}


def test_random_weights_come_from_the_seed_and_lie_in_their_span():
    one, other = values("ALL:0.5, IN:R", seed=1), values("ALL:0.5, IN:R", seed=2)
    assert one == values("ALL:0.5, IN:R", seed=1)
    assert one != other
    drawn = [one[f"IN{number:02}"] for number in range(12)]
    assert len(set(drawn)) > 6
    assert all(0 <= value <= 1 for value in drawn)
    assert all(-0.5 <= value <= 1.5 for value in values("ALL:U").values())
    assert all(0.2 <= value <= 0.3 for value in values("ALL:R(0.3..0.2)").values())
    assert len(set(values("U," * 16 + "U", seed=7).values())) > 10


def test_a_block_has_the_same_random_weight_whatever_else_is_said():
    assert values("IN04:R", seed=5)["IN04"] == values("OUT:0, MID:R, IN04:R", seed=5)["IN04"]


def test_a_block_has_the_same_random_weight_whatever_model_it_is_in():
    assert values("ALL:R", SD1)["IN04"] == values("ALL:R", SDXL)["IN04"]


def test_letters_stand_for_numbers_of_the_text():
    assert values("IN04:A, IN05:a, IN07:X+0.2, A=0.5, X=0.1") == {
        "IN04": 0.5,
        "IN05": 0.25,
        "IN07": pytest.approx(0.3),
    }
    with pytest.raises(BlockWeightsError, match="B has no value"):
        values("IN04:B, A=1")


def test_rules_by_layer_names_replace_what_their_block_has():
    weights = placed("IN04:0.5, IN04-OUT05:attn2.to_k proj:0, NOT IN04:proj:2")
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    assert weights.of_layer(Place("IN04", "attn2.k"), (layer, "")) == 0
    assert weights.of_layer(Place("IN04", "attn1.k"), ("x_attn1_to_k", "")) == 0.5
    assert weights.of_layer(Place("M00", "proj"), ("x_proj_in", "")) == 2
    assert placed("IN04:NOT attn2:0").of_layer(Place("IN04", "mlp"), ("x_ff_net",)) == 0
    assert placed(":attn2:0").of_layer(Place("OUT11", "attn2.k"), (layer,)) == 0
    assert placed("IN04::0").of_block("IN04") == 0
    assert "NOT IN04:proj:2" in weights.text()


def test_a_preset_is_followed_by_what_differs_from_it():
    presets = {"MIDD": "ALL:0, MID:1"}
    expected = values("ALL:0, MID:1, OUT03:0.5")
    assert values("MIDD, OUT03:0.5", **presets) == expected
    assert values("OUT03:0.5, MIDD", **presets) == expected


def test_blocks_of_another_model_are_named_and_do_no_harm():
    weights = placed("IN09-IN11:0, IN07-IN11:0.5, S30:0, B02-B05:0, NR:0", SDXL)
    assert weights.notes == tuple(
        f"{name}: no such block in this model." for name in ("IN09-IN11", "S30", "B02-B05", "NR")
    )
    assert values("IN09-IN11:0, IN07-IN11:0.5, S30:0", SDXL) == {"IN07": 0.5, "IN08": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IM04:0.5", 'no block or group "IM04"'),
        ("IN04:x", 'Item 1 .*"x" is not a number'),
        ("IN04:0.5, IN05", "Item 2 .*neither a number nor a preset"),
        ("IN04:0.5 0.2", "no meaning by name"),
        ("IN04:1:2:3", "too many colons"),
        ("IN04:101", "from -100 to 100"),
        ("IN04:nan", "not a number"),
        ("IN04:1e400", "from -100 to 100"),
        ("%default=0.5,in=1", "begin with %"),
        ("..:1", "no name of blocks"),
        ("IN04.:1", "no name of blocks"),
        ("1,,1", 'Item 2 .*""'),
        ("OUT:0.5," + ",".join(["1"] * 16), "list of 16"),
    ],
)
def test_what_means_nothing_is_refused_by_its_place(text: str, message: str):
    with pytest.raises(BlockWeightsError, match=message):
        placed(text)


def test_the_text_of_weights_says_the_same_again():
    weights = placed("IN:R, OUT:0, IN04.attn2:0.5, BASE:2", seed=3)
    again = placed(weights.text())
    assert {b: again.of_block(b) for b in SD1.blocks} == {
        b: weights.of_block(b) for b in SD1.blocks
    }
    assert again.of_part("IN04", "attn2.k") == 0.5
