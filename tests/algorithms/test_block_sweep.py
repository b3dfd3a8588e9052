"""A sweep gives each block its turn, whatever the base says, and leaves the others alone."""

import pytest

from anyadapter.algorithms.block_sweep import Level, Step, Trial, sweep
from anyadapter.algorithms.block_weights import BlockWeights
from anyadapter.algorithms.errors import BlockWeightsError
from anyadapter.algorithms.families.blocks import BlockMap, Group, Place, blocks_of_file

PLACES = [
    *(Place(block, part) for block in ("IN01", "IN02", "M00") for part in ("attn1.q", "attn2.k")),
    Place("OUT01", "mlp"),
    Place("L00", "mlp"),
]
BLOCKS = BlockMap(
    (
        Group("IN", ("IN00", "IN01", "IN02")),
        Group("MID", ("M00",)),
        Group("OUT", ("OUT00", "OUT01")),
        Group("BASE", ("BASE",)),
        Group("L", ("L00", "L01", "LBASE"), "clip"),
    ),
    {f"{place}": place for place in PLACES},
)
MODEL = [group for group in BLOCKS.groups if group.section == "model"]
BASES = ("", "IN01:0.5", "OUT:0.25, IN02.attn2:0.75", "IN:0.5, M00.attn1.q:2,", "ALL:0.5\nTE:1")
MEMBERS = {"IN": ("IN01", "IN02"), "MID": ("M00",), "OUT": ("OUT01",)}


def steps(trial: Trial, level: Level = "blocks", base: str = "", value: float = 0.3) -> list[Step]:
    return sweep(BLOCKS, MODEL, trial=trial, level=level, value=value, base=base)


def weights(text: str) -> dict[Place, float]:
    placed = BlockWeights.parse(text).on(BLOCKS)
    return {place: placed.of_layer(place, ()) for place in PLACES}


def test_each_touched_block_has_its_turn() -> None:
    names = [step.label for step in steps("each off in turn")]
    assert names == ["IN01 off", "IN02 off", "M00 off", "OUT01 off"]
    names = [step.label for step in steps("each alone", "groups")]
    assert names == ["IN alone", "MID alone", "OUT alone"]


def test_the_texts_are_short_where_the_base_is_empty() -> None:
    assert steps("each off in turn")[0].text == "IN01:0"
    assert steps("each alone")[1].text == "ALL:0, IN02:1"
    assert steps("each at value")[2] == Step("M00:0.3", "M00 at 0.3")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("level", ["groups", "blocks"])
@pytest.mark.parametrize(("trial", "tried"), [("each off in turn", 0.0), ("each at value", 0.3)])
def test_what_has_its_turn_is_at_its_weight_and_the_rest_as_in_the_base(
    trial: Trial, tried: float, level: Level, base: str
) -> None:
    before = weights(base)
    for step in steps(trial, level, base):
        name = step.label.split()[0]
        members = MEMBERS.get(name, (name,))
        expected = {
            place: tried if place.block in members else weight for place, weight in before.items()
        }
        assert weights(step.text) == expected


@pytest.mark.parametrize("level", ["groups", "blocks"])
@pytest.mark.parametrize("base", ["", "TE:1", "L00.mlp:0.5", "M00.attn1:0.5"])
def test_what_is_alone_is_at_one_and_the_rest_off_but_for_the_base(level: Level, base: str) -> None:
    before = weights(f"ALL:0, {base}")
    for step in steps("each alone", level, base):
        name = step.label.split()[0]
        members = MEMBERS.get(name, (name,))
        expected = {
            place: 1.0 if place.block in members else weight for place, weight in before.items()
        }
        assert weights(step.text) == expected


def test_a_base_of_single_layers_is_refused() -> None:
    with pytest.raises(BlockWeightsError, match="single layers"):
        steps("each off in turn", base="IN01:to_q:0.5")


def test_a_base_that_cannot_be_read_says_why() -> None:
    with pytest.raises(BlockWeightsError, match="IN01:x"):
        steps("each off in turn", base="IN01:x")


def test_a_base_may_be_a_preset() -> None:
    found = sweep(
        BLOCKS,
        MODEL,
        trial="each off in turn",
        level="blocks",
        value=0.0,
        base="MINE",
        find_preset={"MINE": "M00:0.5, IN01.attn2:2"}.get,
    )
    assert [step.text for step in found] == [
        "MINE, IN01:0, IN01.attn2.k:0",
        "MINE, IN02:0",
        "MINE, M00:0",
        "MINE, OUT01:0",
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_unet_that_only_names_tell_has_its_last_layers_in_base(order: int) -> None:
    # They had a place in a block of no group, so that nobody saw them.
    modules = ["lora_unet_conv_norm_out", "lora_unet_down_blocks_0_resnets_0_norm1"][::order]
    found = blocks_of_file(modules, None)
    assert found.places["lora_unet_conv_norm_out"].block == "BASE"
    assert {place.block for place in found.places.values()} <= set(found.blocks)
