"""Open Adapter and Save Adapter: what is saved is what was opened, for us and for other tools."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import comfy.lora
import execution
import lycoris.modules as lycoris
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.editing.file_content import Writing, file_content
from anyadapter.algorithms.editing.header_lines import laid_over
from anyadapter.algorithms.editing.precision import MAGNITUDES, in_dtype
from anyadapter.algorithms.errors import AdapterError, EditingError, FileError, StorageError
from anyadapter.algorithms.formats.hashes import with_hashes
from anyadapter.algorithms.formats.metadata import PEFT_CONFIG, SETTLED, AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_file, parse_tensors
from anyadapter.algorithms.formats.read import read_file, read_header
from anyadapter.algorithms.formats.write import for_kohya
from anyadapter.nodes import opening, saving
from anyadapter.nodes.host.files import adapter_names, load_adapter
from anyadapter.nodes.inputs import AS_OTHERS, AS_TRAINED
from anyadapter.nodes.opening import OpenAdapter
from anyadapter.nodes.saving import SaveAdapter
from base_directory import CHECKPOINT_NAME, example_workflow
from comfy_server import PromptRejectedError
from layer_cases import LayerCase
from oracles import change, only, relative_error
from own_loop import in_own_loop
from pictures import Pictures
from real_models import as_model, real_model
from without_page import without_page
from workflows import api_form, node, text_to_latent

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": 2e-6, "float16": 0.005, "bfloat16": 0.05}
"""Of the effect: what rounding every tensor moves it by."""
SIZES = {"a.lora_up.weight": (8, 4), "a.lora_down.weight": (4, 6)}


@pytest.fixture(autouse=True)
def quiet(loras: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The LoRA folder of a host without a page."""
    for module, one in ((opening, OpenAdapter), (saving, SaveAdapter)):
        without_page(monkeypatch, module, one)
    return loras


def lora(dtype: torch.dtype = torch.float32, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {key: torch.randn(size, generator=generator) for key, size in SIZES.items()}
    return {key: one.to(dtype) for key, one in made.items()} | {"a.alpha": torch.tensor(2.0)} | more


def adapter_of(tensors: dict[str, Tensor], **strings: str) -> AdapterSet:
    return parse_tensors(tensors, strings, "style.safetensors").as_trained()


def save(adapter: AdapterSet, name: str = "saved", **wishes: Any) -> tuple[str, AdapterSet, str]:
    return SaveAdapter.execute(adapter, name, **wishes).result


def opened(name: str, **wishes: Any) -> AdapterSet:
    ((adapter,), _) = OpenAdapter.execute(name, **wishes).result
    return adapter


def require_same(found: Adapter, expected: Adapter) -> None:
    """Checks that the tensors are the same; magnitudes as PEFT has them get kohya's shape."""
    wanted = expected.tensors()
    vector = wanted.pop("magnitude_vector", None)
    if vector is not None:
        wanted["dora_scale"] = vector
    own = found.tensors()
    assert own.keys() == wanted.keys()
    for field, tensor in wanted.items():
        value = own[field]
        assert torch.equal(value.reshape(tensor.shape), tensor), field


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ADAPTER_CASES, ids=lambda case: case.name)
def test_every_method_changes_after_it_was_saved_what_it_changed_before(
    loras: Path, case: AdapterCase, dtype: str
):
    layer: LayerCase = case.layers()[0]
    adapter = case.on(layer)
    name, saved, _ = save(
        AdapterSet("a", {"lora_unet_x": (adapter,)}, AdapterMetadata({})), dtype=dtype
    )
    again = total(layer, load_adapter(name))
    exact = change(layer, adapter)
    assert relative_error(again, exact) < TOLERANCES[dtype]
    assert torch.equal(total(layer, saved), again)
    for key, tensor in load_file(loras / name).items():
        kept = tensor.ndim == 0 or not tensor.is_floating_point() or key.endswith(MAGNITUDES)
        assert tensor.dtype == DTYPES[dtype] or kept, key


def total(layer: LayerCase, adapter_set: AdapterSet) -> Tensor:
    """What the adapters of a file on one layer change; a bias is apart from its LoRA there."""
    (several,) = adapter_set.adapters.values()
    every = [change(layer, one) for one in several]
    return torch.stack(every).sum(0)


def test_saved_as_it_is_every_tensor_is_bit_for_bit_what_it_was(loras: Path):
    tensors = lora(torch.float16) | {"b.diff": torch.randn(8, 6).bfloat16()}
    save_file(tensors, loras / "mixed.safetensors")
    name, _, report = save(opened("mixed.safetensors"))
    found = load_file(loras / name)
    assert {key: one.dtype for key, one in found.items() if one.ndim} == {
        key: one.dtype for key, one in tensors.items() if one.ndim
    }
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert "float16, bfloat16: LoRA-LierLa, full, rank 4, in 2 layers" in report


def test_the_report_says_what_was_saved_where_and_how(loras: Path):
    made = adapter_of(
        lora(**{"bundle_emb.cat.clip_l": torch.ones(2, 8)}) | {"x.gizmo": torch.ones(1)}
    )
    _, _, first = save(made, "styles/cat", dtype="float16")
    name, _, report = save(made, "styles/cat", dtype="float16")
    assert name == str(Path("styles/cat_2.safetensors"))
    assert name in adapter_names()
    size = (loras / name).stat().st_size / 1e6
    start = f"Saved as styles/cat_2.safetensors, {size:.2f} MB, float16: LoRA-LierLa, rank 4"
    assert report.startswith(start)
    assert "The name styles/cat was taken." in report
    assert "was taken" not in first
    assert "With its embeddings: cat." in report
    assert "Not saved, as not understood: x.gizmo." in report
    assert "Rounding to float16 moved the tensors by 0.0" in report
    assert f"It lies at {loras / name}." in report
    assert torch.equal(load_adapter(name).embeddings["cat"]["clip_l"], torch.ones(2, 8))
    assert "x.gizmo" not in load_file(loras / name)


def test_what_is_opened_says_what_it_is(loras: Path):
    tensors = lora(**{"bundle_emb.cat.clip_l": torch.ones(2, 8), "x.gizmo": torch.ones(1)})
    del tensors["a.alpha"]
    save_file(tensors, loras / "cat.safetensors")
    (adapter,), (report,) = OpenAdapter.execute("cat.safetensors").result
    assert adapter is load_adapter("cat.safetensors")
    assert report.startswith("LoRA-LierLa, rank 4, in 1 layer.\nEmbeddings: cat.\n")
    assert "Tensors not understood: x.gizmo." in report
    assert "assumed for 1 layer: scale 1" in report


def test_the_first_ranks_of_dylora_and_no_correction_are_opened_where_asked(loras: Path):
    path = GOLDEN / "lycoris" / "dylora.safetensors"
    (loras / "dylora.safetensors").write_bytes(path.read_bytes())
    cut = opened("dylora.safetensors", rank=2)
    assert {one.rank for several in cut.adapters.values() for one in several} == {2}
    corrected, others = (opened("dylora.safetensors", scale=how) for how in SCALES)
    for module, (adapter,) in corrected.adapters.items():
        assert isinstance(adapter, Lora)
        assert adapter.alpha != others.adapters[module][0].alpha
    name, _, _ = save(cut, "cut")
    assert {one.rank for (one,) in load_adapter(name).adapters.values()} == {2}


SCALES = (AS_TRAINED, AS_OTHERS)


def test_a_list_of_names_opens_and_saves_every_file(loras: Path):
    for number in range(3):
        save_file(lora(**{"a.alpha": torch.tensor(number + 1.0)}), loras / f"{number}.safetensors")
    names = [f"{number}.safetensors" for number in range(3)]

    def run(one: Any, **inputs: list[Any]) -> list[list[Any]]:
        return in_own_loop(execution.get_output_data("prompt", "1", one, inputs))[0]

    adapters, _ = run(OpenAdapter, adapter=names)
    files, _, _ = run(SaveAdapter, adapter=adapters, name=["copy"], dtype=["float32"])
    assert files == ["copy.safetensors", "copy_2.safetensors", "copy_3.safetensors"]
    assert [only(load_adapter(file)).alpha for file in files] == [1.0, 2.0, 3.0]  # type: ignore[attr-defined]


def test_a_number_beyond_float16_is_an_error_and_no_file(loras: Path):
    adapter = adapter_of(lora() | {"b.diff": torch.tensor([[1.0, -7e4]])})
    with pytest.raises(
        EditingError, match=r"1 tensor cannot be saved as float16.*6\.55e\+04: b\.diff"
    ):
        save(adapter, dtype="float16")
    assert [*loras.iterdir()] == []
    name, saved, _ = save(adapter, dtype="bfloat16")
    assert saved.adapters["b"][0].tensors()["diff"].isfinite().all()
    assert load_file(loras / name)["b.diff"].dtype == torch.bfloat16


def test_numbers_that_vanish_and_those_that_are_kept_are_told():
    tensors = {
        "a": torch.tensor([1.0, 1e-9]),
        "n": torch.tensor([1, 2]),
        "alpha": torch.tensor(1e9),
    }
    made, loss = in_dtype(tensors, torch.float16)
    assert "1 number became 0" in loss
    assert made["n"] is tensors["n"]
    assert made["alpha"] is tensors["alpha"]
    assert in_dtype({"a": torch.ones(2).half()}, torch.float32)[1] == ""
    assert in_dtype({"a": torch.ones(2).double()}, torch.float32)[1] == ""


HEADER = {
    "ss_network_module": "networks.lora",
    "ss_tag_frequency": '{"10_cat": {"cat": 5}}',
    "ss_training_comment": "",
    "modelspec.title": "Cat",
    "modelspec.hash_sha256": "0x1",
    "sshs_model_hash": "stale",
    "sshs_legacy_hash": "stale",
}


def header_of(loras: Path, **wishes: Any) -> dict[str, str]:
    name, _, _ = save(adapter_of(lora(), **HEADER), **wishes)
    return read_header(loras / name).metadata


def test_metadata_are_kept_with_new_hashes(loras: Path):
    found = header_of(loras, dtype="float16")
    hashes = {key for key in HEADER if "hash" in key}
    assert {key: found[key] for key in HEADER if key not in hashes} == {
        key: text for key, text in HEADER.items() if key not in hashes
    }
    (path,) = loras.iterdir()
    data = path.read_bytes()
    body = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert found["sshs_model_hash"] == body
    assert found["modelspec.hash_sha256"] == f"0x{body}"
    assert found["sshs_legacy_hash"] != "stale"
    assert set(found) == {*HEADER, "format", SETTLED}


def test_metadata_are_dropped_but_for_what_reading_takes(loras: Path):
    assert set(header_of(loras, metadata="drop")) == {"format", SETTLED}
    lines = "modelspec.title = Dog"
    found = header_of(loras, metadata="drop", metadata_changes=lines)
    assert set(found) == {"format", SETTLED, "modelspec.title"}


def test_lines_are_laid_over_the_metadata(loras: Path):
    lines = """
        # a remark
        modelspec.author = A = B
        ss_tag_frequency =
        modelspec.title = Dog
        anyadapter_settled =
        sshs_model_hash = mine
    """
    found = header_of(loras, metadata_changes=lines)
    assert found["modelspec.author"] == "A = B"
    assert found["modelspec.title"] == "Dog"
    assert found["ss_training_comment"] == ""
    assert "ss_tag_frequency" not in found
    assert found[SETTLED]
    assert found["sshs_model_hash"] != "mine"


@pytest.mark.parametrize("line", ["cat", "= cat", "ok = 1\ncat"])
def test_a_line_that_says_nothing_is_refused(line: str):
    number = line.count("\n") + 1
    with pytest.raises(EditingError, match=f"Line {number} of the metadata"):
        laid_over({}, line)
    assert "is not understood" in str(SaveAdapter.validate_inputs("cat", metadata_changes=line))


def test_what_cannot_be_done_is_refused_before_a_prompt_runs(loras: Path):
    assert SaveAdapter.validate_inputs("styles/%day% cat", "as it is", "a = b") is True
    assert SaveAdapter.validate_inputs() is True
    assert "begins with a dot" in str(SaveAdapter.validate_inputs("../cat"))
    assert "connect the MODEL" in str(SaveAdapter.validate_inputs("cat", "kohya"))
    assert SaveAdapter.validate_inputs("cat", "kohya", model=None) is True
    assert "not in the LoRA folders" in str(OpenAdapter.validate_inputs("gone.safetensors"))
    assert OpenAdapter.validate_inputs() is True
    with pytest.raises(EditingError, match="connect the MODEL"):
        save(adapter_of(lora()), dialect="diffusers")
    with pytest.raises(StorageError, match="cannot be the name"):
        save(adapter_of(lora()), "a/../b")
    with pytest.raises(FileError, match="not in the LoRA folders"):
        opened("gone.safetensors")
    assert [*loras.iterdir()] == []


def test_a_file_that_was_rewritten_is_opened_again(loras: Path):
    assert OpenAdapter.fingerprint_inputs("cat.safetensors") == "[None]"
    save_file(lora(), loras / "cat.safetensors")
    before = OpenAdapter.fingerprint_inputs("cat.safetensors")
    save_file(lora(**{"b.diff": torch.ones(2, 2)}), loras / "cat.safetensors")
    assert OpenAdapter.fingerprint_inputs("cat.safetensors") != before


def test_what_one_file_cannot_hold_is_refused(loras: Path):
    (one,) = adapter_of(lora()).adapters["a"]
    twice = AdapterSet("two", {"a": (one, one)}, AdapterMetadata({}))
    with pytest.raises(EditingError, match="two adapters of LoRA"):
        save(twice)
    nan = adapter_of(lora())
    nan.adapters["a"][0].tensors()["up"][0, 0] = torch.nan
    with pytest.raises(AdapterError, match="a: "):
        save(nan)
    assert [*loras.iterdir()] == []


def by_lycoris(tensors: dict[str, Tensor], module: str) -> Tensor:
    """The weight that LyCORIS makes with a module of a file."""
    kind, parameters = lycoris.get_module(tensors, module)
    with torch.no_grad():
        made = lycoris.make_module(kind, parameters, module, layer(module))
        return made.get_merged_weight(1.0)[0].detach()


def by_host(tensors: dict[str, Tensor], module: str) -> Tensor:
    """The weight that ComfyUI's own loader makes with a module of a file."""
    key = f"{module}.weight"
    weight = layer(module).weight.detach().clone()
    own = {name: one for name, one in tensors.items() if name.startswith(f"{module}.")}
    (patch,) = [
        value for name, value in comfy.lora.load_lora(own, {module: key}).items() if name == key
    ]
    return comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight, key)


@cache
def layer(module: str) -> nn.Module:
    name = module.removeprefix("lora_unet_")
    with safe_open(GOLDEN / "layers.safetensors", framework="pt") as file:
        arguments = json.loads(file.metadata()["layers"])[name]
        made: nn.Module = getattr(nn, arguments.pop("kind"))(**arguments)
        made.load_state_dict({key: file.get_tensor(f"{name}.{key}") for key in made.state_dict()})
    return made


LYCORIS_OPENS = (
    *("boft", "diag_oft", "diag_oft_constraint", "diag_oft_rescaled", "full", "glora", "locon"),
    *("locon_dora", "locon_half", "locon_tucker", "loha_tucker", "lokr", "lokr_dora", "lokr_whole"),
    *("norm", "tlora"),
)
"""The files of LyCORIS that it opens again itself."""
HOST_OPENS = (
    *("boft", "diag_oft", "full", "glora", "locon", "locon_dora", "locon_half", "locon_tucker"),
    *("loha", "loha_tucker", "lokr", "lokr_dora", "lokr_whole", "norm"),
)


@pytest.mark.parametrize(
    ("tool", "stem"),
    [
        *((by_lycoris, stem) for stem in LYCORIS_OPENS),
        *((by_host, stem) for stem in HOST_OPENS),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_other_tools_make_the_same_weights_of_what_was_saved(
    loras: Path, tool: Callable[[dict[str, Tensor], str], Tensor], stem: str
):
    logging.getLogger("LyCORIS").disabled = True
    path = GOLDEN / "lycoris" / f"{stem}.safetensors"
    (loras / path.name).write_bytes(path.read_bytes())
    name, _, _ = save(opened(path.name, scale=AS_OTHERS))
    before, after = load_file(path), load_file(loras / name)
    opened_before: dict[str, Tensor] = {}
    for module in {key.partition(".")[0] for key in before}:
        with suppress(RuntimeError, IndexError):  # some kernels, in the file of the tool too
            opened_before[module] = tool(before, module)
    assert opened_before
    for module, expected in opened_before.items():
        assert not torch.equal(expected, layer(module).weight)
        assert torch.equal(tool(after, module), expected)


GOLDEN_FILES = [
    path
    for path in sorted(GOLDEN.rglob("*.safetensors"))
    if ".expected" not in path.name and path.name != "layers.safetensors"
]


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_a_file_of_any_tool_without_its_metadata_is_read_back_the_same(path: Path):
    try:
        made = parse_file(read_file(path)).as_trained()
    except AdapterError:
        pytest.skip("it cannot be loaded")
    content = file_content(made, Writing(keeps_metadata=False))
    if made.spelling == "peft":
        assert set(content.strings) <= {SETTLED, PEFT_CONFIG}
        return  # what is in which tensor has changed: tests/algorithms/test_golden.py
    assert set(content.strings) == {SETTLED}
    for module, several in for_kohya(made).adapters.items():
        again = {one.name: one for one in content.adapter_set.adapters[module]}
        for one in several:
            assert again[one.name].unstored() == one.unstored()
            require_same(again[one.name], one)


def test_the_bias_of_a_lora_is_read_by_the_loader_of_comfyui(loras: Path):
    """It drops `lora_up.bias`, which it was written as."""
    name, _, _ = save(adapter_of(lora(**{"a.lora_up.bias": torch.arange(8.0)})))
    found = comfy.lora.load_lora(load_file(loras / name), {"a": "a.weight"})
    (shift,) = found["a.bias"][1]
    assert torch.equal(shift, torch.arange(8.0) * 2.0 / 4)
    assert "a.weight" in found


LAYER = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
OF_DIFFUSERS = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def test_another_dialect_is_written_with_the_names_of_the_model(loras: Path):
    model = as_model(real_model("sdxl"))
    up, down = torch.randn(1280, 4), torch.randn(4, 1280)
    keys = {f"{LAYER}.lora_up.weight": up, f"{LAYER}.lora_down.weight": down}
    alpha = {f"{LAYER}.alpha": torch.tensor(2.0)}
    name, saved, _ = save(adapter_of(keys | alpha), dialect="diffusers", model=model)
    found = load_file(loras / name)
    assert set(found) == {f"{OF_DIFFUSERS}.lora_A.weight", f"{OF_DIFFUSERS}.lora_B.weight"}
    product = found[f"{OF_DIFFUSERS}.lora_B.weight"] @ found[f"{OF_DIFFUSERS}.lora_A.weight"]
    torch.testing.assert_close(product, up @ down / 2)
    assert '"unet.r": 4' in read_header(loras / name).metadata["lora_adapter_metadata"]
    back, _, _ = save(saved, dialect="kohya", model=model, metadata="drop")
    found = load_file(loras / back)
    assert set(found) == {*keys, *alpha}
    scale = found[f"{LAYER}.alpha"] / 4
    product = found[f"{LAYER}.lora_up.weight"] @ found[f"{LAYER}.lora_down.weight"] * scale
    torch.testing.assert_close(product, up @ down / 2)


def test_a_method_without_a_place_in_a_dialect_is_refused(loras: Path):
    model = as_model(real_model("sdxl"))
    full = adapter_of({f"{LAYER}.diff": torch.ones(1280, 1280)})
    with pytest.raises(EditingError, match="Convert it to LoRA first"):
        save(full, dialect="peft", model=model)
    elsewhere = adapter_of(lora())
    with pytest.raises(AdapterError, match="connect"):
        save(elsewhere, dialect="peft", model=model)
    assert [*loras.iterdir()] == []


def test_hashes_of_a_file_without_a_title_are_made_anew():
    made = with_hashes({"modelspec.hash_sha256": "0x1"}, lora())
    assert made["modelspec.hash_sha256"] == f"0x{made['sshs_model_hash']}"


def test_a_saved_file_draws_what_the_file_drew(pictures: Pictures):
    server = pictures.server
    folder = server.base_directory / "models" / "loras"
    original = pictures.adapter("locon")
    loader = {"strength_model": 1.0, "strength_clip": 1.0, "mode": "hook", "rank": 0}
    expected = pictures.latent(text_to_latent(CHECKPOINT_NAME, [{"adapter": original, **loader}]))
    save = {"name": "again/locon", "dtype": "as it is", "dialect": "as it is"}
    rest = {"whole": False, "metadata": "keep", "metadata_changes": ""}
    directly = text_to_latent(CHECKPOINT_NAME, [{"adapter": original, **loader}])
    directly["open"] = node("AnyAdapterOpen", adapter=original, rank=0, scale="as trained")
    for name in ("first", "second"):
        directly[name] = node("AnyAdapterSave", adapter=["open", 0], **save, **rest)
    directly["adapter_1"]["inputs"]["trained"] = ["first", 1]
    assert torch.equal(pictures.latent(directly), expected)
    names = ["again/locon.safetensors", "again/locon_2.safetensors"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.glob("again/*")) == names
    listed = server.object_info("AnyAdapterLoad")["input"]["required"]["adapter"]
    assert {str(Path(name)) for name in names} <= set(json.dumps(listed).split('"'))
    for name in names:
        again = text_to_latent(CHECKPOINT_NAME, [{"adapter": name, **loader}])
        assert torch.equal(pictures.latent(again), expected)
    outside = {"open": directly["open"], "first": directly["first"]}
    outside["first"]["inputs"]["name"] = "../out"
    with pytest.raises(PromptRejectedError, match="begins with a dot"):
        server.run(outside)

    workflow = json.loads(example_workflow("open_and_save"))
    history = server.run(api_form(workflow, server))
    (report,) = history["outputs"]["3"]["text"]
    assert "float16: LoRA-C3Lier (LoCon)" in report
    (made,) = (folder / "saved").iterdir()
    assert read_header(made).metadata["ss_training_comment"] == "saved again with Any Adapter"
