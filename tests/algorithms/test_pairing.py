"""Of two models, what both have in the same shape is compared, and the rest is named."""

from anyadapter.algorithms.editing.pairing import Shared, paired
from anyadapter.algorithms.keymap import Dialect, KeyMap, Part, Target

BASE = {
    "model.a.weight": (8, 6),
    "model.a.bias": (8,),
    "model.norm.weight": (8,),
    "model.norm.bias": (8,),
    "model.table": (3, 8),
    "model.wide.weight": (8, 4),
    "model.wide.bias": (8,),
    "model.plain.weight": (8, 8),
    "model.sigmas": (10,),
    "model.logit": (),
}
TUNED = {
    **BASE,
    "model.wide.weight": (8, 9),
    "model.plain.bias": (8,),
}
WEIGHTS = [Target(key) for key in BASE if key.endswith(".weight")]
NAMED = [(target.module, target) for target in WEIGHTS]
OTHERS = [(key, Target(key)) for key in ("model.table", "model.wide.bias", "model.logit")]
OF_HOST = {target: target.module.removeprefix("model.") for target in WEIGHTS}


def key_map(known: tuple[str, ...] = ("a", "wide", "plain")) -> KeyMap:
    """The host knows some weights by kohya's names too."""
    kohya = [(f"lora_unet_{name}", Target(f"model.{name}.weight")) for name in known]
    dialects = (Dialect("kohya", "lora_unet_", "host", True), Dialect("comfy", "model.", "host"))
    part = Part((), (), OF_HOST, {}, dialects)
    return KeyMap([*NAMED, *kohya, *OTHERS], BASE, [part])


def test_layers_go_with_their_bias_under_the_name_that_most_tools_read() -> None:
    found = paired(BASE, TUNED, key_map())
    assert found.shared == (
        Shared("lora_unet_a", "model.a.weight", "model.a.bias"),
        Shared("model.norm", "model.norm.weight", "model.norm.bias"),
        Shared("model.table", "model.table", is_weight=False),
        Shared("model.wide.bias", "model.wide.bias", is_weight=False),
        Shared("lora_unet_plain", "model.plain.weight"),
    )


def test_what_cannot_be_compared_is_named() -> None:
    found = paired(BASE, TUNED, key_map())
    assert found.alone == ("model.plain.bias",)
    assert found.misfits == ("model.wide.weight ([8, 4] and [8, 9])",)
    assert found.nameless == ("model.sigmas", "model.logit")
    assert paired(TUNED, BASE, key_map()).alone == ("model.plain.bias",)


def test_the_bias_of_a_layer_without_a_name_is_named_with_it() -> None:
    known = KeyMap([one for one in NAMED if one[0] != "model.a"], BASE)
    assert {"model.a.weight", "model.a.bias"} <= {*paired(BASE, BASE, known).nameless}


def test_a_name_that_means_something_else_is_not_used() -> None:
    """Of text encoders several may have a layer of one name."""
    clash = KeyMap(
        [*NAMED, ("lora_unet_a", Target("model.plain.weight"))],
        BASE,
        [Part((), (), OF_HOST, {}, (Dialect("kohya", "lora_unet_", "host", True),))],
    )
    names = {layer.key: layer.name for layer in paired(BASE, BASE, clash).shared}
    assert names["model.a.weight"] == "model.a"
