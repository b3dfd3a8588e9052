"""Files spoiled in every way: all of them load whole, name what they leave out, or are refused.

Valid files of every method come from the cases of the laws, so a new method is under this at once.
FUZZ_EXAMPLES=200 in the environment asks for more files of each method than a usual run has.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.adapters import ADAPTERS, Adapter
from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.errors import AdapterError
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.outline import outline
from anyadapter.algorithms.formats.parse import AdapterSet, parse_file, parse_tensors
from anyadapter.algorithms.formats.read import read_file
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.report import Coverage, report
from checking import annotations_unchecked
from layer_cases import LayerCase

NAME = "fuzz.safetensors"
MODULES = ("lora_unet_down_0_to_q", "unet.mid.to_k", "base_model.model.up.0.conv")
SUFFIXES = sorted({s for method in ADAPTERS for role in method.roles for s in role.suffixes})
OTHER_ENDINGS = (".gizmo", ".weight", "", ".weight_scale", ".default.weight")
DTYPES = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64),
)
SIZES = (0, 1, 2, 3, 4, 6, 8)

File = dict[str, Tensor]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))
few_examples = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)


@dataclass(frozen=True)
class Valid:
    """A valid file of one module, and the layer that it is for."""

    tensors: File
    layer: LayerCase

    def named(self, module: str) -> File:
        """Returns the file with another name of its module."""
        return {key.replace(MODULES[0], module, 1): value for key, value in self.tensors.items()}


@cache
def valid(case: AdapterCase) -> list[Valid]:
    """Returns files of a method for layers of each kind."""
    made: list[Valid] = []
    for layer in case.layers()[::3]:
        adapter_set = AdapterSet("a", {MODULES[0]: (case.make(layer),)}, AdapterMetadata({}))
        tensors, _ = to_tensors(adapter_set)
        made.append(Valid({key: value.clone() for key, value in tensors.items()}, layer))
    return made


@pytest.fixture(autouse=True, scope="module")
def _as_users_run_it() -> Iterator[None]:
    """What is made of a bad file must not depend on the checks of annotations, which users lack."""
    with annotations_unchecked():
        yield


@pytest.fixture(autouse=True, scope="module")
def _valid_files() -> None:
    """Makes the files before hypothesis draws: the checks of shapes use Python's own random."""
    for case in ADAPTER_CASES:
        valid(case)


class Drawn:
    """A file of up to three modules, and the layers that they are for."""

    def __init__(self, tensors: File, layers: dict[str, LayerCase]) -> None:
        self.tensors = tensors
        self.layers = layers

    def __repr__(self) -> str:  # a failure shows it, as no dataclass would
        forms = {key: (value.dtype, list(value.shape)) for key, value in self.tensors.items()}
        return f"{forms} for { {name: case.name for name, case in self.layers.items()} }"


@st.composite
def files(draw: Any, case: AdapterCase) -> Drawn:
    """Draws a file of a method, alone or with other methods on other modules."""
    others = draw(st.lists(st.sampled_from(ADAPTER_CASES), max_size=2))
    tensors: File = {}
    layers: dict[str, LayerCase] = {}
    for module, one in zip(MODULES, (case, *others), strict=False):
        part = draw(st.sampled_from(valid(one)))
        tensors |= part.named(module)
        layers[module] = part.layer
    return Drawn(cloned(tensors), layers)


def cloned(tensors: File) -> File:
    """Returns tensors that share no memory, which a file cannot hold."""
    return {key: value.clone().contiguous() for key, value in tensors.items()}


Draw = Callable[[Any], Any]


def _key(draw: Draw, tensors: File) -> str:
    return draw(st.sampled_from(sorted(tensors)))


def _other_name(draw: Draw, key: str) -> str:
    """Draws a name in place of a key: another module, another ending, or another letter."""
    module = next((module for module in MODULES if key.startswith(module)), "")
    endings = st.sampled_from((*SUFFIXES, *OTHER_ENDINGS)).map(lambda s: s.replace("*", "default"))
    modules = st.sampled_from((*MODULES, "", "x"))
    letter = draw(st.integers(0, len(key) - 1))
    return draw(
        st.one_of(
            endings.map(lambda ending: module + ending),
            modules.map(lambda other: other + key.removeprefix(module)),
            st.just(key[:letter] + key[letter + 1 :]),
        )
    )


def drop(draw: Draw, tensors: File) -> None:
    del tensors[_key(draw, tensors)]


def rename(draw: Draw, tensors: File) -> None:
    key = _key(draw, tensors)
    tensors[_other_name(draw, key)] = tensors.pop(key)


def duplicate(draw: Draw, tensors: File) -> None:
    key = _key(draw, tensors)
    tensors[_other_name(draw, key)] = torch.ones(tensors[key].shape)


def merge(draw: Draw, tensors: File) -> None:
    """Puts another method on a module that has one."""
    module = draw(st.sampled_from(MODULES))
    other = draw(st.sampled_from(valid(draw(st.sampled_from(ADAPTER_CASES)))))
    tensors.update(other.named(module))


def transpose(draw: Draw, tensors: File) -> None:
    key = _key(draw, tensors)
    tensors[key] = tensors[key].movedim(0, -1) if tensors[key].ndim else tensors[key][None]


def reshape(draw: Draw, tensors: File) -> None:
    """Gives a tensor another number of axes, other sizes, or nothing in it."""
    key = _key(draw, tensors)
    kept = tensors[key]
    tensors[key] = draw(
        st.one_of(
            st.just(kept.flatten()),
            st.just(kept[None]),
            st.just(kept[..., None]),
            st.just(torch.ones(())),
            st.just(kept.flatten(1) if kept.ndim > 1 else kept),
            st.lists(st.sampled_from(SIZES), max_size=5).map(torch.ones),
        )
    )


def retype(draw: Draw, tensors: File) -> None:
    key = _key(draw, tensors)
    kept = tensors[key].real if tensors[key].is_complex() else tensors[key]
    tensors[key] = kept.to(draw(st.sampled_from(DTYPES)))


def spoil(draw: Draw, tensors: File) -> None:
    key = _key(draw, tensors)
    spoilt = tensors[key].clone().contiguous()
    if spoilt.numel() and spoilt.is_floating_point():
        value = draw(st.sampled_from([0.0, -1.0, 448.0, math.nan, math.inf, -math.inf]))
        spoilt.view(-1)[draw(st.integers(0, spoilt.numel() - 1))] = value
    tensors[key] = spoilt


def empty(draw: Draw, tensors: File) -> None:
    """Makes all numbers of a tensor 0."""
    key = _key(draw, tensors)
    tensors[key] = torch.zeros_like(tensors[key])


MUTATIONS = (drop, rename, duplicate, merge, transpose, reshape, retype, spoil, empty)


@st.composite
def mutated_files(draw: Any, case: AdapterCase) -> Drawn:
    """Draws a file that was valid before, its tensors in any order."""
    drawn = draw(files(case))
    tensors = dict(drawn.tensors)
    for mutate in draw(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3)):
        if tensors:
            mutate(draw, tensors)
    order = draw(st.permutations(sorted(tensors)))
    return Drawn(cloned({key: tensors[key] for key in order}), drawn.layers)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / NAME


CASES_OF = {
    method: [case for case in ADAPTER_CASES if type(case.on(case.layers()[0])) is method]
    for method in ADAPTERS
}
each_method = pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)


@each_method
@few_examples
@given(data=st.data())
def test_a_mutated_file_loads_whole_or_is_refused(
    method: type[Adapter], path: Path, data: st.DataObject
) -> None:
    drawn = data.draw(mutated_files(data.draw(st.sampled_from(CASES_OF[method]))))
    path.write_bytes(save(drawn.tensors))
    parsed = load(path)
    if parsed is None:
        return
    assert_nothing_is_lost(drawn.tensors, parsed)
    assert report(parsed, [Coverage("UNet", 1, 1)], {})
    assert_it_binds_or_is_refused(parsed, drawn.layers)


@few_examples
@given(data=st.data())
def test_mutated_bytes_load_whole_or_are_refused(path: Path, data: st.DataObject) -> None:
    drawn = data.draw(files(data.draw(st.sampled_from(ADAPTER_CASES))))
    content = bytearray(save(drawn.tensors, {"ss_network_module": "networks.lora"}))
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, header_end - 1))
        content[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123"{}[],:')))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path.write_bytes(content[:end])
    parsed = load(path)
    if parsed is not None:
        with safe_open(path, "pt") as opened:
            kept = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        assert_nothing_is_lost(kept, parsed)


def load(path: Path) -> AdapterSet | None:
    """Returns the adapters of a file, or None if it was refused with an error of ours."""
    outlined = outline(path)
    try:
        parsed = parse_file(read_file(path))
    except AdapterError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert NAME in refused
        assert outlined.reason in ("", refused)
        return None
    assert outlined.adapters is not None, outlined.reason
    assert outlined.adapters.adapters.keys() == parsed.adapters.keys()
    return parsed


def assert_nothing_is_lost(tensors: File, parsed: AdapterSet) -> None:
    """Checks that each tensor of a file is in an adapter, with its numbers, or left over by name.

    A number that is not finite may be missing: an alpha that overflowed counts as none.
    """
    held = {
        module: [torch.as_tensor(value) for one in adapters for value in one.stored().values()]
        for module, adapters in parsed.adapters.items()
    }
    assert set(parsed.unclaimed) <= tensors.keys()
    assert len(set(parsed.unclaimed)) == len(parsed.unclaimed)
    for key in tensors.keys() - set(parsed.unclaimed):
        value = tensors[key]
        module = max((name for name in held if key.startswith(name)), key=len, default=None)
        # A tensor that serves all modules stands under the name of none.
        places = list(held.values()) if module is None else [held[module]]
        found = [(place, i) for place in places for i, one in enumerate(place) if same(one, value)]
        if not found:
            assert value.numel() == 1, f"{key} is neither in an adapter nor left over"
            assert not torch.isfinite(value.float()).all(), f"{key} is lost"
        elif module is not None:
            place, index = found[0]
            del place[index]


def same(one: Tensor, other: Tensor) -> bool:
    if one.numel() == other.numel() == 1:
        return float(one) == float(other)
    return one.shape == other.shape and torch.equal(one.double(), other.double())


def assert_it_binds_or_is_refused(parsed: AdapterSet, layers: dict[str, LayerCase]) -> None:
    """Checks that binding, and the change of each weight that was bound, fail with our errors."""
    weights = {f"{module}.weight": case.weight for module, case in layers.items()}
    biases = {f"{name}.bias": case.bias for name, case in layers.items() if case.bias is not None}
    shapes = {key: tuple(value.shape) for key, value in (weights | biases).items()}
    key_map = KeyMap(((module, Target(f"{module}.weight")) for module in layers), shapes)
    try:
        binding = bind(parsed.as_trained(), key_map)
        for bound in binding.bound:
            weight = weights[bound.target.weight].float()
            prepared = bound.adapter.prepared(weight)
            change = prepared.delta_weight(weight)
            assert change is None or change.shape == weight.shape
    except AdapterError:
        return


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["x", "", "4", "true", "nan", "1e999", "(", "to_q", "dylora", "LORA", "["]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["to_q", "(", "*"]), inner)
    ),
    max_leaves=4,
)
OPTIONS = (
    *("r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora"),
    *("peft_type", "target_modules", "init_lora_weights", "algo", "block_size", "rs_lora"),
    *("split_qkv", "loraplus_lr_ratio", "oft_block_size", "coft", "eps", "use_cayley_neumann"),
    *("block_share", "decompose_factor", "factor", "constraint", "wd_on_output", "is_feedforward"),
    *("scaling", "fan_in_fan_out", "projection_prng_key", "n_frequency", "random_loc_seed"),
)
options = st.dictionaries(
    st.builds(
        lambda prefix, key: prefix + key, st.sampled_from(["", "unet."]), st.sampled_from(OPTIONS)
    ),
    json_values,
    max_size=6,
)
HEADER_KEYS = ("ss_network_args", "lora_adapter_metadata", "ot_config", "ss_network_alpha")
headers = st.fixed_dictionaries(
    {},
    optional={
        **{key: (options | json_values).map(json.dumps) | st.text() for key in HEADER_KEYS},
        "ss_network_dim": st.text(),
        "ss_network_module": st.sampled_from(
            ["networks.lora", "lycoris.kohya", "networks.oft", ""]
        ),
        "software": st.text(),
    },
)


@each_method
@settings(few_examples, max_examples=(EXAMPLES + 1) // 2)
@given(data=st.data())
def test_a_header_of_any_json_is_read_or_refused(
    method: type[Adapter], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(CASES_OF[method]))
    strings, config = data.draw(headers), data.draw(options | st.none())
    tensors = data.draw(st.sampled_from(valid(case))).named(data.draw(st.sampled_from(MODULES)))
    try:
        trained = parse_tensors(tensors, strings, NAME, config).as_trained()
    except AdapterError:
        return
    assert isinstance(trained.metadata.training, str | None)
    for (adapter,) in trained.adapters.values():
        for value in adapter.stored().values():
            assert torch.isfinite(torch.as_tensor(value)).all()
