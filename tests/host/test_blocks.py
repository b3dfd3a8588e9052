"""Blocks: of every model family by ComfyUI's own classes, of files by their names, and in pictures."""

from collections import Counter
from functools import cache
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from comfy import sd1_clip, sdxl_clip
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyadapter.algorithms.families import FAMILIES, detect, sizes_of
from anyadapter.algorithms.families.blocks import (
    BlockMap,
    blocks_of_clip,
    blocks_of_file,
    blocks_of_model,
    place_of,
)
from anyadapter.algorithms.keymap import KeyMap
from anyadapter.nodes.host.keymaps import diffusion_model_key_map
from base_directory import CHECKPOINT_NAME
from comfy_server import PromptFailedError
from made_adapters import Applied
from name_lists import weights_of
from pictures import MODES, Mode, Pictures
from real_models import MODELS, as_model, real_model
from workflows import text_to_latent

every_family = pytest.mark.parametrize("family", MODELS)
DIALECTS = ("comfy", "kohya", "onetrainer", "diffusers", "peft", "lycoris")
# Layers in each block of a UNet, of which the tables of sd-scripts and LBW speak.
SD = {"IN00": 1, "IN03": 1, "IN04": 16, "IN05": 15, "IN06": 1, "IN07": 16, "IN08": 15, "M00": 18}
LAYERS = {
    "sd1": SD
    | {"IN01": 15, "IN02": 15, "IN09": 1, "IN10": 3, "IN11": 3, "OUT00": 4, "OUT01": 4, "OUT02": 5}
    | {"OUT03": 16, "OUT04": 16, "OUT05": 17, "OUT06": 16, "OUT07": 16, "OUT08": 17}
    | {"OUT09": 16, "OUT10": 16, "OUT11": 16},
    "sdxl": {"IN00": 1, "IN01": 3, "IN02": 3, "IN03": 1, "IN04": 26, "IN05": 25, "IN06": 1}
    | {"IN07": 106, "IN08": 105, "M00": 108, "OUT00": 106, "OUT01": 106, "OUT02": 107}
    | {"OUT03": 26, "OUT04": 26, "OUT05": 27, "OUT06": 4, "OUT07": 4, "OUT08": 4},
}
NAMED_OTHERWISE = {
    "pixart_alpha": ("attn1.", "attn."),
    "pixart_sigma": ("attn1.", "attn."),
    "hunyuan_video": ("TR attn.", "TR attn1."),
}
"""Families in which diffusers calls the only attention so, or the host."""
GROUPS = {
    "sd1": {"IN": 12, "MID": 1, "OUT": 12},
    "sdxl": {"IN": 9, "MID": 1, "OUT": 9},
    "flux": {"DOUBLE": 19, "SINGLE": 38},
    "flux2": {"DOUBLE": 8, "SINGLE": 48},
    "chroma": {"GL": 5, "DOUBLE": 19, "SINGLE": 38},
    "sd35_medium": {"EARLY": 8, "MIDDLE": 8, "LATE": 8},
    "wan": {"EARLY": 13, "MIDDLE": 14, "LATE": 13},
    "hunyuan_video": {"TR": 2, "DOUBLE": 20, "SINGLE": 40},
    "qwen_image": {"EARLY": 20, "MIDDLE": 20, "LATE": 20},
    "z_image": {"NR": 2, "CR": 2, "EARLY": 10, "MIDDLE": 10, "LATE": 10},
    "auraflow": {"DOUBLE": 4, "SINGLE": 32},
    "hidream": {"DOUBLE": 16, "SINGLE": 32},
}


@cache
def key_map_of(family: str) -> KeyMap:
    return diffusion_model_key_map(as_model(real_model(family)))


@cache
def blocks_of(family: str) -> BlockMap:
    return blocks_of_model(key_map_of(family).shapes)


@every_family
def test_every_weight_of_a_model_is_in_exactly_one_block(family: str):
    found = blocks_of(family)
    assert len(set(found.blocks)) == len(found.blocks)
    weights = {key for key in key_map_of(family).shapes if key.startswith("diffusion_model.")}
    assert found.places.keys() == weights
    assert {place.block for place in found.places.values()} <= set(found.blocks)
    assert all(place.part for place in found.places.values())


@pytest.mark.parametrize("family", LAYERS)
def test_blocks_of_unets_hold_the_layers_that_tools_give_them(family: str):
    shapes = key_map_of(family).shapes
    matrices = {key for key, shape in shapes.items() if len(shape) > 1}
    counted = Counter(
        place.block for key, place in blocks_of(family).places.items() if key in matrices
    )
    del counted["BASE"]
    assert counted == LAYERS[family]


@pytest.mark.parametrize("family", GROUPS)
def test_models_have_the_groups_that_users_know(family: str):
    found = {group.name: len(group.blocks) for group in blocks_of(family).groups}
    assert found.pop("BASE") == (1 if "IN" in found else 2)
    assert found == GROUPS[family]


@every_family
@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_in_every_dialect_tell_the_block_without_a_model(family: str, dialect: str):
    key_map, exact = key_map_of(family), blocks_of(family)
    names = {key_map.name(target, dialect): target for target in key_map.targets()}
    names.pop(None, None)
    made_for = detect(sizes_of(key_map.shapes))
    by_name = blocks_of_file([name for name in names if name], made_for)
    wrong = {
        name: (by_name.places[name].block, exact.places[target.weight].block)
        for name, target in names.items()
        if name and by_name.places[name].block != exact.places[target.weight].block
    }
    assert not wrong
    assert {group.name for group in by_name.groups} == {group.name for group in exact.groups}


@every_family
def test_names_of_diffusers_tell_the_block_and_the_part(family: str):
    key_map, exact = key_map_of(family), blocks_of(family)
    names = [one.name.removesuffix(".weight") for one in weights_of(family) if one.is_layer]
    by_name = blocks_of_file(names, detect(sizes_of(key_map.shapes)))
    for name in names:
        target = key_map.target(name)
        if target is None:
            continue
        place, named = exact.places[target.weight], by_name.places[name]
        assert named.block == place.block, name
        if place.block in ("IN", "OUT", "BASE") or "other" in (named.part, place.part):
            continue
        theirs, ours = NAMED_OTHERWISE.get(family, ("", ""))
        same = f"{named.block[:2]} {named.part}".replace(theirs, ours).removeprefix(named.block[:2])
        assert place_of(place, named).part == same.strip(), name


def test_a_model_that_nobody_knows_has_blocks():
    model = nn.Module()
    model.diffusion_model = nn.Module()
    model.diffusion_model.patchify = nn.Linear(4, 4)
    for name, count in (("encoder_layers", 4), ("decoder_layers", 6), ("heads", 1)):
        rows = [nn.ModuleDict({"attn_q": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)})] * count
        setattr(model.diffusion_model, name, nn.ModuleList(rows))
    found = blocks_of_model({key: tuple(t.shape) for key, t in model.state_dict().items()})
    assert [(group.name, group.blocks) for group in found.groups] == [
        ("EL", ("EL00", "EL01", "EL02", "EL03")),
        ("DL", tuple(f"DL{number:02}" for number in range(6))),
        ("BASE", ("IN", "OUT")),
    ]
    assert found.places["diffusion_model.decoder_layers.5.attn_q.weight"].block == "DL05"
    by_name = blocks_of_file(["diffusion_model.decoder_layers.5.attn_q"], None)
    assert by_name.places["diffusion_model.decoder_layers.5.attn_q"].block == "DL05"


def test_numbers_that_are_no_blocks_make_none():
    # A date in a module name made twenty million blocks.
    names = ["lora_unet_foo_20240101_bar", f"lora_unet_foo_{'9' * 5000}_bar"]
    names += ["lora_unet_input_blocks_20240101_x", "lora_te1_text_model_encoder_layers_20240101_x"]
    for family in (None, FAMILIES[-1]):
        found = blocks_of_file(names, family)
        assert len(found.blocks) < 60
        assert found.places.keys() == set(names)


@pytest.mark.parametrize("name", ["mixers", "modules", "stages", "decoder", "m", "bank"])
def test_lists_of_unknown_models_have_names_of_their_own(name: str):
    shapes = {
        f"diffusion_model.{name}.{number}.{layer}.weight": (4, 4)
        for number in range(6)
        for layer in ("a", "b")
    }
    found = blocks_of_model(shapes)
    first, _ = found.groups
    assert len(first.blocks) == 6
    assert {place.block for place in found.places.values()} == set(first.blocks)
    assert first.name not in ("MID", "DOUBLE", "SINGLE")


@pytest.mark.parametrize(
    ("encoder", "groups"),
    [(sd1_clip.SD1ClipModel, {"L": 13}), (sdxl_clip.SDXLClipModel, {"L": 13, "G": 33})],
    ids=["SD 1", "SDXL"],
)
def test_text_encoders_have_their_layers_as_blocks(encoder: Any, groups: dict[str, int]):
    with torch.device("meta"):
        model = encoder(device="meta")
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = blocks_of_clip(shapes)
    assert {group.name: len(group.blocks) for group in found.groups} == groups
    assert set(found.places) == set(shapes)
    assert {place.block for place in found.places.values()} == set(found.blocks)
    key = "clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj.weight"
    assert (found.places[key].block, found.places[key].part) == ("L03", "attn.q")


@pytest.mark.parametrize(
    ("module", "family", "block"),
    [
        ("lora_te_text_model_encoder_layers_3_mlp_fc1", "SD 1.x", "L03"),
        ("lora_te_text_model_encoder_layers_20_mlp_fc1", "SD 2.x", "H20"),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", "SDXL", "G31"),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc1", "SDXL", "G31"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.1.mlp.fc1", "SDXL", "G01"),
        ("lora_te2_encoder_block_23_layer_0_SelfAttention_q", "Flux", "T23"),
        ("text_encoder_3.encoder.block.5.layer.1.DenseReluDense.wo", "SD 3", "T05"),
        ("text_encoders.t5xxl.transformer.encoder.block.5.layer.0.SelfAttention.q", "SD 3", "T05"),
        ("lora_te2_text_projection", "SDXL", "GBASE"),
    ],
)
def test_names_of_text_encoders_tell_the_block(module: str, family: str, block: str):
    made_for = next(one for one in FAMILIES if one.name == family)
    found = blocks_of_file([module], made_for)
    assert found.places[module].block == block
    assert block in found.blocks


# Pictures of the small checkpoint.


METHODS = ("locon", "loha", "lokr", "diag_oft")
LOCON = "locon.safetensors"


@pytest.fixture(scope="module")
def pictures(pictures: Pictures) -> Pictures:
    for method in METHODS:
        pictures.adapter(method)
    return pictures


def latent(pictures: Pictures, adapter: str = LOCON, mode: Mode = "hook", **loader: Any) -> Tensor:
    always = {"adapter": adapter, "strength_model": 1.0, "strength_clip": 1.0, "mode": mode}
    return pictures.latent(text_to_latent(CHECKPOINT_NAME, [{**always, "rank": 0, **loader}]))


def without(pictures: Pictures, name: str, piece: str) -> str:
    """Makes a file that lacks the modules with `piece` in their names, and returns its name."""
    folder = pictures.server.base_directory / "models" / "loras"
    tensors = load_file(folder / name)
    kept = {key: tensor for key, tensor in tensors.items() if piece not in key}
    assert 0 < len(kept) < len(tensors)
    with safe_open(folder / name, framework="pt") as file:
        metadata = file.metadata()
    made = f"without_{piece}{name}"
    save_file(kept, folder / made, metadata)
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_a_block_at_0_is_a_file_without_it(pictures: Pictures, method: str, mode: Mode):
    file = pictures.adapter(method)
    made = without(pictures, file, "_mid_block_")
    found = latent(pictures, file, mode, blocks="MID:0")
    assert torch.equal(found, latent(pictures, made, mode))
    assert not torch.equal(found, latent(pictures, file, mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_part_at_0_is_a_file_without_it(pictures: Pictures, mode: Mode):
    made = without(pictures, LOCON, "_attn2_")
    assert torch.equal(
        latent(pictures, LOCON, mode, blocks="ALL.attn2:0"), latent(pictures, made, mode)
    )


@pytest.mark.parametrize("mode", MODES)
def test_text_encoders_at_0_are_strength_clip_0(pictures: Pictures, mode: Mode):
    off = latent(pictures, LOCON, mode, blocks="TE:0")
    assert torch.equal(off, latent(pictures, LOCON, mode, strength_clip=0.0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_all_blocks_at_a_value_are_that_strength(pictures: Pictures, method: str, mode: Mode):
    file = pictures.adapter(method)
    found = latent(pictures, file, mode, blocks="ALL:-0.5")
    expected = latent(pictures, file, mode, strength_model=-0.5, strength_clip=-0.5)
    assert torch.equal(found, expected)


def test_the_report_says_what_the_weights_of_blocks_are(pictures: Pictures):
    loader = pictures.loader(Applied("locon"), "hook")
    loader |= {"blocks": "IN01:R, S30:0, MID:0.5", "blocks_seed": 3}
    history = pictures.run(text_to_latent(CHECKPOINT_NAME, [loader]))
    (report,) = history["outputs"]["adapter_1"]["text"]
    assert "S30: no such block in this model" in report
    assert "MID:0.5" in report
    assert "IN01:0." in report


def test_a_text_that_means_nothing_stops_the_prompt(pictures: Pictures):
    with pytest.raises(PromptFailedError, match='no block or group "IM01"'):
        latent(pictures, blocks="IM01:0")


def ask(pictures: Pictures, route: str, **query: Any) -> tuple[int, Any]:
    return pictures.server.get(f"/anyadapter/{route}?{urlencode(query)}")


def test_the_route_tells_the_blocks_of_a_file(pictures: Pictures):
    status, answer = ask(pictures, "blocks", adapter=LOCON)
    assert status == 200
    assert answer["family"] == "SD 1.x"
    blocks = {block["name"]: block for group in answer["groups"] for block in group["blocks"]}
    assert blocks["IN01"]["touched"]
    assert [part["name"] for part in blocks["IN01"]["parts"]][:4] == [
        f"attn1.{projection}" for projection in ("q", "k", "v", "out")
    ]
    assert all(blocks[name]["energy"] > 0 for name in ("IN01", "M00", "L00"))
    untouched = [block for block in blocks.values() if not block["touched"]]
    assert all(block["energy"] == 0 for block in untouched)


def test_the_route_knows_the_model_of_the_last_run(pictures: Pictures):
    latent(pictures, "loha.safetensors")
    _, answer = ask(pictures, "blocks", adapter="loha.safetensors")
    groups = {group["name"]: len(group["blocks"]) for group in answer["groups"]}
    assert groups == {"IN": 4, "MID": 1, "OUT": 4, "BASE": 1, "L": 13}


def test_the_route_reads_a_text(pictures: Pictures):
    query = {"adapter": LOCON, "text": "IN01:0.5, IN01.attn2:0, MID:R", "seed": 7}
    status, answer = ask(pictures, "block_weights", **query)
    assert status == 200
    assert answer["values"]["IN01"] == 0.5
    assert answer["values"]["L00"] == 1
    assert 0 <= answer["values"]["M00"] <= 1
    assert answer["parts"]["IN01.attn2.k"] == 0
    assert "IN01.attn1.k" not in answer["parts"]


@pytest.mark.parametrize(
    ("route", "query", "status", "message"),
    [
        ("blocks", {}, 400, "lacks adapter"),
        ("blocks", {"adapter": "gone.safetensors"}, 404, "not in the LoRA folders"),
        ("blocks", {"adapter": "../../secret.safetensors"}, 404, "not in the LoRA folders"),
        ("block_weights", {"adapter": LOCON}, 400, "lacks text"),
        ("block_weights", {"adapter": LOCON, "text": "x:1"}, 400, '"X"'),
        (
            "block_weights",
            {"adapter": LOCON, "text": "ALL:R", "seed": "nan"},
            400,
            "not a whole number",
        ),
    ],
)
def test_routes_refuse_bad_requests(
    pictures: Pictures, route: str, query: dict[str, str], status: int, message: str
):
    found, answer = ask(pictures, route, **query)
    assert found == status
    assert message in answer["error"]
