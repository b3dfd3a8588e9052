"""sd-scripts' arguments of blocks: its numbers, its presets of rates, and what is refused."""

from typing import Any

import pytest

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.families import FAMILIES
from anyadapter.algorithms.families.blocks import BlockMap, Group
from anyadapter.algorithms.training.kohya_blocks import (
    SD_BLOCKS,
    SDXL_BLOCKS,
    block_rates,
    indices,
    rules_of_arguments,
)
from anyadapter.algorithms.training.rules import RuleTable
from anyadapter.algorithms.training.targets import Targets

BY_NAME = {family.name: family for family in FAMILIES}
ONES_25 = ",".join("1" * 25)


def targets(family: str | None, *blocks: str) -> Targets:
    groups = (Group("ANY", blocks),) if blocks else ()
    return Targets((), BlockMap(groups), BY_NAME.get(family or ""))


def table(family: str | None = "SD 1.x", rate: float = 1e-4, **arguments: str) -> RuleTable:
    return rules_of_arguments(arguments, targets(family, "D00", "D01", "S00"), learning_rate=rate)


def said(found: RuleTable) -> dict[str, dict[str, Any]]:
    """Pattern -> what its rule says."""
    return {rule.pattern: dict(rule.values) for rule in found.rules}


def rates(found: RuleTable) -> list[float]:
    return [round(float(values["rate"]), 3) for values in said(found).values()]


def test_numbers_are_for_the_blocks_of_sd_scripts():
    dims = table(block_dims=",".join(map(str, range(25))))
    assert said(dims) == {
        **{f"IN{number:02}": {"rank": number} for number in range(12)},
        "M00": {"rank": 12},
        **{f"OUT{number:02}": {"rank": 13 + number} for number in range(12)},
    }
    dims = table("SDXL", block_dims=",".join(map(str, range(23))))
    by_block = {name: values["rank"] for name, values in said(dims).items()}
    assert (by_block["IN00"], by_block["IN08"], by_block["OUT00"], by_block["OUT08"]) == (
        *(1, 9),
        *(13, 21),
    )
    assert [by_block[f"*middle_block.{number}.*"] for number in range(3)] == [10, 11, 12]


def test_all_lists_of_a_block_make_one_rule():
    found = table(
        block_dims=",".join(["4"] * 25),
        block_alphas=",".join(["2"] * 25),
        conv_block_dims=",".join(["0"] * 25),
        conv_block_alphas=",".join([".5"] * 25),
        mid_lr_weight="0.25",
    )
    ranks = {"rank": 4, "alpha": 2.0, "conv_rank": 0, "conv_alpha": 0.5}
    assert said(found) == {
        block: ranks | {"rate": 0.25 if block == "M00" else 1.0} for block in SD_BLOCKS
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosine", [1, 0.99, 0.959, 0.91, 0.841, 0.756, 0.655, 0.541, 0.415, 0.282, 0.142, 0]),
        ("linear", [round(number / 11, 3) for number in range(12)]),
        ("reverse_linear", [round(number / 11, 3) for number in reversed(range(12))]),
        ("zeros", [0] * 12),
        ("zeros+.5", [0.5] * 12),
    ],
)
def test_presets_of_rates_have_the_values_of_sd_scripts(text: str, expected: list[float]):
    found, note = block_rates(text, 12, "down_lr_weight")
    assert ([round(rate, 3) for rate in found], note) == (expected, "")


def test_sine_with_an_offset_on_sdxl_has_the_values_of_sd_scripts():
    expected = [0.25, 0.445, 0.633, 0.806, 0.957, 1.081, 1.174, 1.231, 1.25]
    found = table("SDXL", up_lr_weight="sine+.25")
    assert list(said(found)) == list(SDXL_BLOCKS[1:-1])
    assert rates(found) == [*[1.0] * 12, *expected]


def test_lists_of_rates_are_filled_with_1_or_cut_and_a_note_says_so():
    found = table(down_lr_weight="0.5,,2", up_lr_weight=",".join(["3"] * 13))
    assert rates(found) == [0.5, 0, 2, *[1] * 9, 1, *[3] * 12]
    assert found.notes == (
        "down_lr_weight has 3 rates for 12 blocks: the last 9 blocks have rate 1.",
        "up_lr_weight has 13 rates for 12 blocks: those after the first 12 were left out.",
    )
    # sd-scripts fails on a long list alone.
    assert rates(table(down_lr_weight=",".join(["3"] * 13)))[:13] == [*[3] * 12, 1]


def test_rates_that_are_not_above_the_threshold_are_0():
    found = table(up_lr_weight="linear", block_lr_zero_threshold="0.3")
    assert rates(found)[13:18] == [0, 0, 0, 0, 0.364]


def test_regular_expressions_have_ranks_and_parts_of_the_rate():
    found = table(
        None,
        network_reg_dims="attn=8, (?=x)mlp=4,",
        network_reg_lrs="attn=5e-5,mlp=0",
    )
    assert [(rule.pattern, dict(rule.values)) for rule in found.rules] == [
        ("re:attn", {"rank": 8}),
        ("re:(?=x)mlp", {"rank": 4}),
        ("re:attn", {"rate": 0.5}),
        ("re:mlp", {"rate": 0.0}),
    ]
    assert all(rule.required for rule in found.rules)


def test_what_is_included_stands_before_what_is_excluded():
    found = table(
        None, include_patterns="['.*q_norm.*', 'x_embedder']", exclude_patterns="'.*mlp.*'"
    )
    assert [(rule.pattern, rule.train) for rule in found.rules] == [
        ("re:^(?:.*q_norm.*)$", True),
        ("re:^(?:x_embedder)$", True),
        ("re:^(?:.*mlp.*)$", False),
        ("re:^(?:.*(?:_modulation|_norm|_embedder|final_layer).*)$", False),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("none", []),
        ("3", [3]),
        ("0-5", [0, 1, 2, 3, 4, 5]),
        (" 0-2, 7 ", [0, 1, 2, 7]),
    ],
)
def test_numbers_of_blocks_are_read(text: str, expected: list[int]):
    found = indices(text, 8, "train_block_indices")
    assert [number for number, meant in enumerate(found) if meant] == expected


def test_blocks_of_flux_are_left_out_by_their_numbers():
    found = table("Flux", train_double_block_indices="1", train_single_block_indices="all")
    assert [(rule.pattern, rule.train) for rule in found.rules] == [("D00", False)]


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("SD 1.x", {"block_dims": "1,2"}, "block_dims has 2 numbers, and this model 25 blocks"),
        ("SDXL", {"block_dims": ONES_25}, "25 numbers, and this model 23 blocks"),
        ("SD 1.x", {"block_dims": ONES_25 + "x"}, '"1x" is no number of 0 or more'),
        ("SD 1.x", {"block_dims": ONES_25 + ".5"}, '"1.5" is no whole number'),
        ("SD 1.x", {"block_alphas": "0" + ONES_25[1:]}, "an alpha of 0"),
        ("SD 1.x", {"down_lr_weight": "sinus"}, 'down_lr_weight: "sinus" is no number'),
        ("SD 1.x", {"up_lr_weight": "sine+x"}, 'up_lr_weight: "x" is no number'),
        (
            "SD 1.x",
            {"single_dim": "4"},
            "single_dim is no argument of blocks for SD 1.x. There are",
        ),
        (None, {"block_dims": "4"}, "block_dims is no argument of blocks for this model"),
        ("Flux", {"train_blocks": "both"}, "must be one of all, double, single"),
        ("Flux", {"train_double_block_indices": "0-x"}, '"0-x" is no number of a block'),
        ("Flux", {"train_double_block_indices": "2"}, "means no blocks here: they are 0 to 1"),
        ("Flux", {"train_double_block_indices": "1-0"}, "means no blocks here"),
        ("Flux", {"in_dims": "4,4"}, "in_dims has 2 ranks, and must have 5: of img_in"),
        (None, {"network_reg_dims": "attn"}, '"attn" is no pair'),
        (None, {"include_patterns": "attn"}, "is no list of patterns"),
        (None, {"include_patterns": "[1]"}, "is no list of patterns"),
    ],
)
def test_what_means_nothing_is_refused_and_named(
    family: str | None, arguments: dict[str, str], message: str
):
    with pytest.raises(TrainingError, match=message):
        table(family, **arguments)


def test_absolute_rates_need_a_rate_of_the_run():
    with pytest.raises(TrainingError, match="parts of the learning rate, which is 0"):
        table(None, rate=0.0, network_reg_lrs="attn=1e-4")
