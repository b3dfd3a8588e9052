"""Tables of rules: which layers they mean, which value counts, and what is refused."""

import pytest

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.families import detect, diffusion_model_part, sizes_of
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.training.rules import OPTIONS, PlacedRules, Rule, RuleTable
from anyadapter.algorithms.training.targets import Targets, targets_of_model

TRANSFORMER = {
    "proj_in": (8, 8, 1, 1),
    "transformer_blocks.0.attn1.to_q": (8, 8),
    "transformer_blocks.0.attn2.to_k": (8, 768),
    "transformer_blocks.0.ff.net.2": (8, 32),
}
LAYERS = {
    "input_blocks.0.0": (8, 4, 3, 3),
    "input_blocks.1.0.in_layers.2": (8, 8, 3, 3),
    "input_blocks.1.0.emb_layers.1": (8, 32),
    **{f"input_blocks.1.1.{name}": shape for name, shape in TRANSFORMER.items()},
    "middle_block.0.in_layers.2": (8, 8, 3, 3),
    **{f"middle_block.1.{name}": shape for name, shape in TRANSFORMER.items()},
    "output_blocks.0.0.in_layers.2": (8, 16, 3, 3),
    "output_blocks.0.0.emb_layers.1": (8, 32),
    **{f"output_blocks.1.1.{name}": shape for name, shape in TRANSFORMER.items()},
    "out.2": (4, 8, 3, 3),
}
NORM = "input_blocks.1.1.norm"


def layer(shape: tuple[int, ...]) -> Layer:
    kind = {1: "group_norm", 2: "linear", 4: "conv"}[len(shape)]
    return Layer(kind, shape)  # type: ignore[arg-type]


def targets(**more: tuple[int, ...]) -> Targets:
    """The layers of a small SD 1."""
    named = {**LAYERS, NORM: (8,), **more}
    by_path = {f"diffusion_model.{name}": shape for name, shape in named.items()}
    shapes = {f"{path}.weight": shape for path, shape in by_path.items()}
    part = diffusion_model_part(shapes, (), detect(sizes_of(shapes)))
    key_map = KeyMap((), shapes, [part])
    return targets_of_model(key_map, {path: layer(shape) for path, shape in by_path.items()})


SD1 = targets()


def placed(text: str, *, norms: bool = False) -> PlacedRules:
    return RuleTable.parse(text).on(SD1, norms=norms)


def trained(text: str) -> set[str]:
    """The host's paths of the layers that are trained."""
    return {one.layer.target.module.removeprefix("diffusion_model.") for one in placed(text).chosen}


def test_without_rules_all_layers_but_norms_are_trained_as_the_run_has_it():
    assert trained("") == set(LAYERS)
    assert all(one.rate == 1 and not one.options for one in placed("").chosen)
    assert len(placed("", norms=True).chosen) == len(LAYERS) + 1


def test_layers_have_their_kind_their_place_and_the_name_of_sd_scripts():
    by_path = {one.target.module.removeprefix("diffusion_model."): one for one in SD1.layers}
    first = by_path["input_blocks.1.1.transformer_blocks.0.attn1.to_q"]
    assert first.name == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert first.target == Target("diffusion_model." + first.spellings[1] + ".weight")
    assert (first.place.block, first.place.part) == ("IN01", "attn1.q")
    kinds = ["proj_in", "transformer_blocks.0.attn1.to_q", "norm"]
    assert [by_path[f"input_blocks.1.1.{name}"].kind for name in kinds] == ["1x1", "linear", "norm"]
    assert by_path["input_blocks.0.0"].kind == "kxk"


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("ALL", 19),
        ("IN01", 6),
        ("in1", 6),
        ("IN00-IN01", 7),
        ("MID", 5),
        ("IN, MID", 12),
        ("IN01.attn2", 1),
        ("ALL.attn2", 3),
        ("BASE", 1),
        ("TE", 0),
        ("*attn2*", 3),
        ("*_attn2_to_k", 3),
        ("lora_unet_mid_block_*", 5),
        ("*down_blocks.0.*", 6),
        ("out.2", 1),
        ("diffusion_model.out.2", 1),
        ("lora_unet_conv_out", 1),
        ("re:to_[qk]$", 6),
        ("re:^lora_unet_(mid|up)_block.*(to_q|emb_proj)$", 3),
        ("re:attn{1,2}2", 3),
    ],
)
def test_patterns_mean_blocks_parts_and_names(pattern: str, count: int):
    rule = Rule(pattern, None, {"rate": 0.5}, required=False)
    placed = RuleTable((rule,)).on(SD1)
    assert placed.counts == ((rule, count),)
    assert sum(one.rate == 0.5 for one in placed.chosen) == count


def test_for_each_value_the_first_rule_that_says_it_counts():
    text = """
        # ranks first
        *attn2*: rank=8 rate=0.5
        IN01: rank=4 alpha=2
        ALL: rate=2 alpha=1
    """
    options = {
        one.layer.target.module: (one.rate, dict(one.options)) for one in placed(text).chosen
    }
    start = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    assert options[f"{start}.attn2.to_k"] == (0.5, {"rank": 8, "alpha": 2.0})
    assert options[f"{start}.attn1.to_q"] == (2.0, {"rank": 4, "alpha": 2.0})
    assert options["diffusion_model.out.2"] == (2.0, {"alpha": 1.0})


def test_a_rule_before_a_preset_changes_what_it_trains_and_no_more():
    before = RuleTable.parse("*attn1*: off\nIN01: rank=4\nout.2: on")
    found = before.followed_by(RuleTable.of_preset("LierLa")).on(SD1)
    paths = {one.layer.target.module.removeprefix("diffusion_model."): one for one in found.chosen}
    blocks = ("input_blocks.1.1", "middle_block.1", "output_blocks.1.1")
    names = [name for name in TRANSFORMER if "attn1" not in name]
    assert set(paths) == {*(f"{block}.{name}" for block in blocks for name in names), "out.2"}
    assert paths["input_blocks.1.1.proj_in"].options == {"rank": 4}


def test_layers_keep_the_order_of_the_model():
    order = [one.target.module for one in SD1.layers if one.kind != "norm"]
    chosen = placed("re:to_k$: rank=2\nIN: rate=3").chosen
    assert [one.layer.target.module for one in chosen] == order


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("ALL.conv: off", 15),
        ("ALL.conv: rate=0", 15),
        ("ALL: conv_rank=0", 14),
        ("ALL: rank=0", 5),
        ("ALL: rank=0 conv_rank=4", 5),
    ],
)
def test_off_and_zeros_leave_layers_out(rule: str, left: int):
    chosen = placed(rule).chosen
    assert len(chosen) == left
    assert all(one.options.get("rank") != 0 for one in chosen)


def test_all_values_are_read_with_their_types():
    words = {str: "LoKr", bool: "true", int: "2", float: "0.25"}
    line = "ALL: " + " ".join(f"{key}={words[kind]}" for key, kind in OPTIONS.items())
    rule = Rule.parse(line)
    assert {key: type(value) for key, value in rule.values.items()} == dict(OPTIONS)
    assert rule.text() == line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank=4", "lacks a pattern or a value"),
        ("IN01:", "lacks a pattern or a value"),
        (": off", "lacks a pattern or a value"),
        ("IN01: rang=4", '"rang=4" is no value of a rule. There are on, off, and method='),
        ("IN01: 4", '"4" is no value'),
        ("IN01: rank=4.5", 'rank is "4.5", and must be a whole number'),
        ("IN01: rate=nan", "must be a number"),
        ("IN01: dora=maybe", "must be true or false"),
        ("IN01: method=", "must be a word"),
        ("IN01: rate=-1", "rate is below 0"),
        ("XY01: off", 'no block or group "XY01"'),
        ("some layer: off", "is the name of no layer, and of no blocks"),
        ("re:(: off", "stands no regular expression"),
        ("*attn3*: off", r"matches no layer. Groups here are ALL, IN, MID, OUT, BASE; blocks are"),
        ("OUT05: off", "matches no layer"),
        ("IN01..: off", "matches no layer"),
        ("re:attn3: rank=4", "lora_unet_conv_in"),
        ("IN: rank=4\nIN01: rank=8", "of its 6 layers rules before it say all that it says"),
        ("IN: off\nIN01: rank=8", 'none of its 6 layers is trained. Add "on"'),
        ("ALL: off", "leave none of 19 layers"),
    ],
)
def test_what_means_nothing_is_refused_and_named(text: str, message: str):
    with pytest.raises(TrainingError, match=message.replace("(", r"\(")):
        placed(text)


def test_an_unknown_preset_is_refused_with_those_that_there_are():
    with pytest.raises(TrainingError, match=r'"lierla"\. There are LierLa, C3Lier, full'):
        RuleTable.of_preset("lierla")


def test_the_table_is_described_with_what_each_rule_matches():
    table = RuleTable.parse("*attn2*: rank=8 rate=0.5\nBASE: off")
    noted = RuleTable(table.rules, ("A note.",))
    assert noted.on(SD1).describe().splitlines() == [
        "*attn2*: rank=8 rate=0.5  3 layers",
        "BASE: off                 1 layer",
        "Trained: 18 of 19 layers of the model.",
        "A note.",
    ]
