"""PEFT's configuration: in the header, beside the file, of another file, broken, and refusals."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.errors import FormatError
from anyadapter.algorithms.formats import peft
from anyadapter.algorithms.formats.cache import ParsedFiles, file_state
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_file, parse_tensors
from anyadapter.algorithms.formats.read import read_file
from anyadapter.algorithms.formats.write import to_tensors
from import_peft import peft as their_peft

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["to_q", "to_k"]}


FROM_CONFIG = "What its tensors do not say is from adapter_config.json beside the file."


def lora(module: str = "base_model.model.mid.to_q", rank: int = 4) -> dict[str, Tensor]:
    return {
        f"{module}.lora_A.weight": torch.ones(rank, 5),
        f"{module}.lora_B.weight": torch.ones(3, rank),
    }


def saved(
    folder: Path,
    config: object,
    tensors: dict[str, Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> AdapterSet:
    path = folder / "style.safetensors"
    save_file(tensors or lora(), path, metadata)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return parse_file(read_file(path)).as_trained()


def only(adapter_set: AdapterSet) -> Adapter:
    ((adapter,),) = adapter_set.adapters.values()
    return adapter


def scale_of(adapter_set: AdapterSet) -> float:
    adapter = only(adapter_set)
    assert isinstance(adapter, Lora)
    return adapter.scale


def test_a_configuration_beside_the_file_gives_the_scale(tmp_path: Path) -> None:
    adapter_set = saved(tmp_path, CONFIG)
    assert scale_of(adapter_set) == 0.5
    assert adapter_set.notes == (FROM_CONFIG,)


def test_the_header_wins_over_the_file_beside(tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 12})}
    assert scale_of(saved(tmp_path, CONFIG, metadata=header)) == 3.0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"r": 8}, "has rank 4, it says 8"),
        ({"rank_pattern": {"to_q": 2}}, "has rank 4, it says 2"),
        ({"peft_type": "VERA"}, "it is for VeRA, whose tensors the file does not have"),
        ({"peft_type": "NEWEST"}, "its type NEWEST is unknown"),
        ({"peft_type": None}, "is unknown"),
        ({"target_modules": ["to_v"]}, "is none of its target modules"),
    ],
)
def test_a_configuration_of_another_file_is_not_used(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    adapter_set = saved(tmp_path, CONFIG | change)
    assert scale_of(adapter_set) == 1.0
    assert why in adapter_set.notes[0]


@pytest.mark.parametrize("key", ["ss_network_module", "ot_config", "software"])
def test_a_file_of_another_tool_does_not_take_a_configuration_beside_it(
    tmp_path: Path, key: str
) -> None:
    adapter_set = saved(tmp_path, CONFIG, metadata={key: "{}"})
    assert scale_of(adapter_set) == 1.0
    assert f"names another tool ({key})" in adapter_set.notes[0]


def test_a_kohya_file_does_not_take_a_configuration_beside_it(tmp_path: Path) -> None:
    tensors = {"x.lora_up.weight": torch.ones(3, 4), "x.lora_down.weight": torch.ones(4, 5)}
    assert scale_of(saved(tmp_path, CONFIG, tensors)) == 1.0


@pytest.mark.parametrize(
    ("text", "words"), [("{oh", "cannot be read"), ("[1]", "is no configuration")]
)
def test_a_broken_configuration_is_a_note(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "style.safetensors"
    save_file(lora(), path)
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    adapter_set = parse_file(read_file(path)).as_trained()
    assert scale_of(adapter_set) == 1.0
    assert words in adapter_set.notes[0]


def test_a_changed_configuration_makes_the_file_be_read_again(tmp_path: Path) -> None:
    saved(tmp_path, CONFIG)
    path, files = tmp_path / "style.safetensors", ParsedFiles()
    before = file_state(path)
    assert scale_of(files.get(path).as_trained()) == 0.5
    beside = tmp_path / "adapter_config.json"
    beside.write_text(json.dumps(CONFIG | {"lora_alpha": 8}), encoding="utf-8")
    os.utime(beside, ns=(1, 1))
    assert file_state(path) != before
    assert scale_of(files.get(path).as_trained()) == 2.0
    beside.unlink()
    assert scale_of(files.get(path).as_trained()) == 1.0


NAMES = ["first", "mid.first", "mid.first.proj", "first.0", "mid.notfirst", "proj", "a.b.c"]
PATTERNS = [
    {"first": 1},
    {"^first": 1},
    {"mid.first": 1},
    {"^mid.first$": 1},
    {".*proj": 1, "first": 2},
    {r"(mid|a)\.(first|b)(\..*)?": 1},
    {"^(?!mid).*": 1},
    {r"a\.b": 1, "c": 2},
]


@pytest.mark.parametrize(
    "prefix",
    ["", "base_model.model.", "unet.", "unet.base_model.model.", "transformer.", "text_encoder_2."],
)
@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_patterns_fit_the_names_that_they_fit_in_peft(
    prefix: str, patterns: dict[str, int]
) -> None:
    for name in NAMES:
        expected = patterns.get(their_peft.utils.other.get_pattern_key(patterns.keys(), name), 0)
        assert peft.by_pattern(patterns, prefix + name, 0) == expected, name


def test_a_name_behind_the_wrapper_of_peft_is_taken_as_it_is() -> None:
    # A language model's own `transformer.` is no component of a pipeline.
    module = "base_model.model.transformer.h.0"
    assert peft.by_pattern({"^h.0": 1}, module, 0) == 0
    assert peft.by_pattern({"^transformer.h.0": 1}, module, 0) == 1


def test_each_component_of_a_header_has_its_own_configuration() -> None:
    header = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {"^mid.to_k": 2},
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 12,
    }
    metadata = AdapterMetadata({"lora_adapter_metadata": json.dumps(header)})
    assert metadata.origin("unet.mid.to_q").alpha == 8
    assert metadata.origin("unet.mid.to_k").alpha == 2
    assert metadata.origin("text_encoder.layers.0.q_proj").alpha == 12
    assert metadata.origin("text_encoder_2.layers.0.q_proj").alpha is None


def test_a_written_set_keeps_its_configuration(tmp_path: Path) -> None:
    tensors, strings = to_tensors(parse_file(read_file(_file(tmp_path))))
    assert scale_of(parse_tensors(tensors, strings, "a").as_trained()) == 0.5


def _file(folder: Path) -> Path:
    saved(folder, CONFIG)
    return folder / "style.safetensors"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "PiSSA"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"monteclora_config": {"num_samples": 8}}, "MonteCLoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"layer_replication": [[0, 2]]}, "copies of layers"),
        ({"target_parameters": ["experts.weight"]}, "stacked parameters"),
    ],
)
def test_what_a_configuration_makes_of_a_lora_besides_a_lora_is_refused_by_name(
    tmp_path: Path, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        saved(tmp_path, CONFIG | option)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_alone_are_loaded(tmp_path: Path, start: object) -> None:
    adapter_set = saved(tmp_path, CONFIG | {"init_lora_weights": start})
    assert scale_of(adapter_set) == 0.5
    assert adapter_set.notes == (FROM_CONFIG,)


def test_loftq_is_loaded_with_a_remark(tmp_path: Path) -> None:
    adapter_set = saved(tmp_path, CONFIG | {"init_lora_weights": "loftq"})
    assert "LoftQ" in adapter_set.notes[1]


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("prompt_embeddings", "prompt, prefix or p-tuning"),
        ("prefix_task_cols", "prompt, prefix or p-tuning"),
        ("base_model.model.layers.1.self_attn.adaption_prompt", "adaption prompt"),
        ("base_model.model.x.poly_lora_A", "Poly"),
        ("base_model.model.x.lily_A.weight", "Lily"),
        ("base_model.model.internal_xlora_classifier.layers.0.weight", "X-LoRA"),
        ("base_model.model.x.psoft_R.weight", "PSOFT"),
        ("base_model.tinylora_v.0", "TinyLoRA"),
        ("base_model.frod_V.first", "FRoD"),
        ("base_model.model.x.adamss_A.0", "AdaMSS"),
        ("base_model.model.shadow_model.x.weight", "Shadow"),
        ("base_model.model.x.lora_diag", "KaSA"),
    ],
)
def test_what_is_no_change_of_weights_is_refused_by_name(key: str, title: str) -> None:
    with pytest.raises(FormatError, match=f"PEFT's {title}, which cannot be loaded"):
        parse_tensors({key: torch.ones(2)} | lora(), {}, "a.safetensors")


def test_tokens_beside_a_lora_are_left_out_with_a_note() -> None:
    tokens = {"base_model.model.e.token_adapter.trainable_tokens_delta": torch.ones(2, 5)}
    parsed = parse_tensors(tokens | lora(), {}, "a.safetensors")
    assert "trainable tokens in the file are not applied" in parsed.notes[0]
    assert parsed.unclaimed == tuple(tokens)


def test_what_is_known_and_not_applied_is_told_of_a_file_too(tmp_path: Path) -> None:
    # The node said only that the tensor was not understood.
    tokens = {"base_model.model.e.token_adapter.trainable_tokens_delta": torch.ones(2, 5)}
    path = tmp_path / "style.safetensors"
    save_file(lora() | tokens, path)
    adapter_set = parse_file(read_file(path))
    assert adapter_set.unclaimed == tuple(tokens)
    assert any("trainable tokens" in note for note in adapter_set.notes)


def test_methods_that_lack_their_shared_matrices_say_what_to_do() -> None:
    tensors = {"x.vera_lambda_b": torch.ones(3), "x.vera_lambda_d": torch.ones(2)}
    with pytest.raises(FormatError, match="save_projection=True"):
        parse_tensors(tensors, {}, "a").as_trained()


def test_a_file_of_shared_tensors_alone_says_what_to_do() -> None:
    with pytest.raises(FormatError, match="PEFT's Uni-LoRA, but holds no whole layer"):
        parse_tensors({"base_model.unilora_theta_d": torch.ones(9)}, {}, "a")


def test_defaults_that_are_taken_without_a_configuration_are_named() -> None:
    tensors = {"x.fourierft_spectrum": torch.ones(3)}
    (note,) = parse_tensors(tensors, {}, "a").as_trained().notes
    assert "seed 777 and scaling 150" in note


def test_names_of_an_adapter_in_memory_are_known() -> None:
    tensors = {"x.vera_lambda_b.default": torch.ones(3), "x.vera_lambda_d.default": torch.ones(2)}
    shared = {"vera_A.default": torch.ones(2, 9), "vera_B.default": torch.ones(7, 2)}
    parsed = parse_tensors(tensors | shared, {}, "a").as_trained()
    assert only(parsed).name == "VeRA"
    assert not parsed.unclaimed


def test_shared_tensors_that_nothing_uses_are_left_over() -> None:
    parsed = parse_tensors({"base_model.vera_A": torch.ones(2, 9)} | lora(), {}, "a")
    assert parsed.unclaimed == ("base_model.vera_A",)


def test_shared_tensors_are_written_once_where_peft_has_them() -> None:
    shared = {"base_model.vera_A": torch.ones(2, 9), "base_model.vera_B": torch.ones(7, 2)}
    tensors = dict(shared)
    for name in ("first", "second"):
        tensors[f"base_model.model.{name}.vera_lambda_b"] = torch.ones(3)
        tensors[f"base_model.model.{name}.vera_lambda_d"] = torch.ones(2)
    written, _ = to_tensors(parse_tensors(tensors, {}, "a"))
    assert written.keys() == tensors.keys()


def test_shared_tensors_of_two_components_stay_apart() -> None:
    tensors: dict[str, Tensor] = {}
    for part, value in (("unet", 1.0), ("text_encoder", 2.0)):
        tensors[f"{part}.vera_A"] = torch.full((2, 9), value)
        tensors[f"{part}.vera_B"] = torch.ones(7, 2)
        tensors[f"{part}.x.vera_lambda_b"] = torch.ones(3)
        tensors[f"{part}.x.vera_lambda_d"] = torch.ones(2)
    parsed = parse_tensors(tensors, {}, "a")
    found = {module: one.tensors()["a"][0, 0] for module, (one,) in parsed.adapters.items()}
    assert found == {"unet.x": 1.0, "text_encoder.x": 2.0}
