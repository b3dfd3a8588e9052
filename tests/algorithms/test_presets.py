"""The presets mean for each block what the lists of numbers mean that users know them by."""

import pytest

from anyadapter.algorithms.block_weights import BlockWeights
from anyadapter.algorithms.errors import PresetError
from anyadapter.algorithms.families.blocks import BlockMap, Group, blocks_of_file
from anyadapter.algorithms.families.diffusion_transformers import QWEN_IMAGE
from anyadapter.algorithms.families.flux import CHROMA, FLUX, HUNYUAN_VIDEO
from anyadapter.algorithms.families.unets import SD1, SD2, SDXL, SDXL_REFINER
from anyadapter.algorithms.presets import PRESETS, checked_name, find, presets_for

CLIP_LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
OF_SD = blocks_of_file([CLIP_LAYER], SD1)
OF_SDXL = blocks_of_file([], SDXL)
OF_FLUX = blocks_of_file([], FLUX)

# The 17 blocks in which SD 1 has attention; the lists of users know no others.
SEVENTEEN = ["BASE", *(f"IN{number:02}" for number in (1, 2, 4, 5, 7, 8)), "M00"]
SEVENTEEN += [f"OUT{number:02}" for number in range(3, 12)]
VECTORS = {
    "NONE": "0 000000 0 000000000",
    "ALL": "1 111111 1 111111111",
    "INS": "1 111000 0 000000000",
    "IND": "1 000111 0 000000000",
    "INALL": "1 111111 0 000000000",
    "MIDD": "1 000111 1 111100000",
    "OUTD": "1 000000 0 111100000",
    "OUTS": "1 000000 0 000011111",
    "OUTALL": "1 000000 0 111111111",
    "MIDALL": "1 000000 1 000000000",
}
FRACTIONS = {
    "ALL0.5": [0.5] * 17,
    "MIDD0.2": [1, 0, 0, 0, 0, 0, 0.2, 0.4, 0.4, 0.2, 0, 0, 0, 0, 0, 0, 0],
    "MIDD0.8": [1, 0, 0, 0, 0, 0.5, 0.8, 0.8, 0.4, 0, 0, 0, 0, 0, 0, 0, 0],
    "MOUT": [1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0],
}
FLUX_BLOCKS = [f"D{number:02}" for number in range(19)] + [f"S{number:02}" for number in range(38)]
FLUX_VECTORS = {
    "DBL-ALL": 19 * [1] + 38 * [0],
    "DBL-FRONT7": 7 * [1] + 12 * [0] + 38 * [0],
    "DBL-MID6": 7 * [0] + 6 * [1] + 6 * [0] + 38 * [0],
    "DBL-TAIL6": 13 * [0] + 6 * [1] + 38 * [0],
    "SINGLE-ALL": 19 * [0] + 38 * [1],
    "SINGLE-1to10": 19 * [0] + 10 * [1] + 28 * [0],
    "SINGLE-11to20": 19 * [0] + 10 * [0] + 10 * [1] + 18 * [0],
    "SINGLE-21to30": 19 * [0] + 20 * [0] + 10 * [1] + 8 * [0],
    "SINGLE-31to37": 19 * [0] + 30 * [0] + 8 * [1],
    "ALL": 57 * [1],
    "NONE": 57 * [0],
}


def text(name: str) -> str:
    preset = find(name)
    assert preset is not None
    return preset.text


def values(name: str, blocks: BlockMap, of: list[str]) -> list[float]:
    weights = BlockWeights.parse(text(name)).on(blocks)
    assert not weights.notes
    return [weights.of_block(block) for block in of]


@pytest.mark.parametrize("name", VECTORS)
def test_a_preset_of_sd_is_its_list_of_seventeen(name: str):
    expected = [int(digit) for digit in VECTORS[name].replace(" ", "")]
    assert values(name, OF_SD, SEVENTEEN) == expected


@pytest.mark.parametrize("name", FRACTIONS)
def test_a_preset_of_sd_with_fractions_is_its_list_of_seventeen(name: str):
    assert values(name, OF_SD, SEVENTEEN) == FRACTIONS[name]


def test_rout_is_random_in_the_out_blocks_alone():
    drawn = BlockWeights.parse(text("ROUT")).on(OF_SD, seed=3)
    found = [drawn.of_block(block) for block in SEVENTEEN]
    assert found[:8] == [1] * 8
    assert len(set(found[8:])) == 9
    assert all(0 <= value <= 1 for value in found[8:])


@pytest.mark.parametrize("name", [preset.name for preset in PRESETS])
def test_base_and_the_text_encoders_are_as_the_name_says(name: str):
    whole = {"NONE": (0, 0), "ALL0.5": (0.5, 0.5), "TE-OFF": (1, 0), "TE-ONLY": (0, 1)}
    weights = BlockWeights.parse(text(name)).on(OF_SD)
    found = (weights.of_block("BASE"), weights.of_block("L03"))
    assert found == whole.get(name, (1, 1))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("SDXL-INS", "IN04 IN05"),
        ("SDXL-IND", "IN07 IN08"),
        ("SDXL-MIDD", "IN07 IN08 M00 OUT00 OUT01 OUT02"),
        ("SDXL-OUTD", "OUT00 OUT01 OUT02"),
        ("SDXL-OUTS", "OUT03 OUT04 OUT05"),
        ("INALL", "IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08"),
        ("MIDALL", "M00"),
        ("OUTALL", "OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08"),
    ],
)
def test_a_preset_of_sdxl_leaves_these_blocks_on(name: str, blocks: str):
    expected = [float(block in [*blocks.split(), "BASE"]) for block in OF_SDXL.blocks]
    assert values(name, OF_SDXL, list(OF_SDXL.blocks)) == expected


@pytest.mark.parametrize("name", FLUX_VECTORS)
def test_a_preset_of_flux_is_its_list(name: str):
    assert values(name, OF_FLUX, FLUX_BLOCKS) == FLUX_VECTORS[name]


@pytest.mark.parametrize("third", ["EARLY", "MIDDLE", "LATE"])
def test_a_third_alone(third: str):
    blocks = blocks_of_file(
        [f"transformer_blocks.{number}.attn.to_q" for number in range(60)], None
    )
    (group,) = [one for one in blocks.groups if one.name == third]
    on = {*group.blocks, "IN", "OUT"}
    expected = [float(block in on) for block in blocks.blocks]
    assert values(f"{third}-ONLY", blocks, list(blocks.blocks)) == expected


def names(family: str | None, blocks: BlockMap) -> list[str]:
    return [preset.name for preset in presets_for(family, blocks.groups)]


EVERYWHERE = ["ALL", "NONE", "ALL0.5"]
UNET = [*EVERYWHERE, "INALL", "MIDALL", "OUTALL"]
SD_ONLY = ["INS", "IND", "MIDD", "MIDD0.2", "MIDD0.8", "MOUT", "OUTD", "OUTS", "ROUT"]
ENCODERS = ["TE-OFF", "TE-ONLY"]
TWO_LISTS = [*EVERYWHERE, "DBL-ALL", "SINGLE-ALL"]


def test_presets_are_those_of_the_family():
    assert names(SD1.name, OF_SD) == [*UNET, *SD_ONLY, *ENCODERS]
    assert names(SD2.name, blocks_of_file([], SD2)) == [*UNET, *SD_ONLY]
    assert names(SDXL.name, OF_SDXL) == [*UNET, *(f"SDXL-{one}" for one in XL_ROLES)]
    assert names(SDXL_REFINER.name, blocks_of_file([], SDXL_REFINER)) == UNET
    assert names(FLUX.name, OF_FLUX) == names(CHROMA.name, blocks_of_file([], CHROMA))
    assert set(names(FLUX.name, OF_FLUX)) == {*FLUX_VECTORS, *EVERYWHERE}
    assert names(HUNYUAN_VIDEO.name, blocks_of_file([], HUNYUAN_VIDEO)) == TWO_LISTS


XL_ROLES = ["INS", "IND", "MIDD", "OUTD", "OUTS"]


def test_presets_of_an_unknown_model_are_those_of_its_groups():
    assert names(None, BlockMap((Group("BASE", ("IN", "OUT")),))) == EVERYWHERE
    assert names(None, OF_SDXL) == UNET
    thirds = blocks_of_file([f"blocks.{number}.attn.q" for number in range(6)], None)
    assert names(QWEN_IMAGE.name, thirds) == [*EVERYWHERE, "EARLY-ONLY", "MIDDLE-ONLY", "LATE-ONLY"]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("midd", "MIDD"),
        (" MIDD ", "MIDD"),
        ("SD-MIDD0.2", "MIDD0.2"),
        ("SD-LyC-MIDALL", "MIDALL"),
        ("SDXL-INALL", "INALL"),
        ("SDXL-LyC-OUTALL", "OUTALL"),
        ("FLUX-DBL-FRONT7", "DBL-FRONT7"),
        ("FLUX-SINGLE-1to10", "SINGLE-1to10"),
        ("FLUXALL", "ALL"),
        ("SDXL-MIDD", "SDXL-MIDD"),
    ],
)
def test_a_preset_is_found_by_the_names_that_others_have_for_it(other: str, name: str):
    found = find(other)
    assert found is not None
    assert found.name == name


def test_no_preset_is_found_by_an_unknown_name():
    assert find("AOUT") is None
    assert find("SD-") is None
    assert find("") is None


@pytest.mark.parametrize(
    "name",
    [
        "soft face",
        "顔だけ",
        "脸部",
        "Ñandú!",
        "v2",
        "A-team",
        "Rough",
        "D1",
        "x.y",
        "👩‍🎨",
        "a" * 64,
    ],
)
def test_a_name_of_a_users_preset_may_be_in_any_script(name: str):
    assert checked_name(f"  {name}\n") == name


def test_the_same_name_typed_on_another_system_is_the_same():
    assert checked_name("re\N{COMBINING ACUTE ACCENT}sume") == "résume"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "needs a name"),
        (" \t ", "needs a name"),
        ("\u200b\u2060", "needs a name"),
        ("a" * 65, "at most 64"),
        ("a\nb", "no line breaks"),
        ("a\x00b", "no control characters"),
        ("a\u202egnp", "no control characters"),
        ("a\u2028b", "no line breaks"),
        ("a\ud800b", "no control characters"),
        ("a,b", "commas"),
        ("a:b", "colons"),
        ("MIDD", "comes with the pack"),
        ("midd", "comes with the pack"),
        ("SD-INS", "comes with the pack"),
        ("0.5", "a number"),
        ("-1e3", "a number"),
        ("nan", "a number"),
        ("٣", "a number"),
        ("R", "a number at random"),
        ("u(0..2)", "a number at random"),
        ("A=0.5", "that a letter stands for"),
        ("x+0.2", "that a letter stands for"),
        ("IN04", "the name of blocks"),
        ("in04-in08", "the name of blocks"),
        ("IN04.attn2.q", "the name of blocks"),
        ("DOUBLE", "the name of blocks"),
        ("late", "the name of blocks"),
        ("S30", "the name of blocks"),
        ("BASE", "the name of blocks"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused(name: str, why: str):
    with pytest.raises(PresetError, match=why):
        checked_name(name)
