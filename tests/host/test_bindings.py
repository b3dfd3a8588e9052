"""What Load Adapter keeps: another strength reads and binds nothing, and nothing outlives its model."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor, nn

from anyadapter.algorithms.binding import Bound, bind
from anyadapter.algorithms.errors import NonFiniteError, ShapeError
from anyadapter.nodes import adapting, loading
from anyadapter.nodes.host import bindings, files, messages
from anyadapter.nodes.host.applying import Applied
from anyadapter.nodes.inputs import AS_OTHERS
from anyadapter.nodes.loading import LoadAdapter
from real_models import real_model
from without_page import without_page

CPU = torch.device("cpu")
NAME = "style.safetensors"
MODULE = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return real_model("sd1")


@pytest.fixture
def model(module: nn.Module) -> ModelPatcher:
    return ModelPatcher(module, CPU, CPU)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files.folder_paths, "get_full_path", lambda *_: str(tmp_path / NAME))
    write(tmp_path / NAME, lora())
    return tmp_path / NAME


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sequence[Bound]]]:
    """Runs the node, and returns what it would apply."""
    taken: list[Sequence[Bound]] = []

    def take(_patcher: Any, bound: Sequence[Bound], *_: Any, **__: Any) -> Applied:
        taken.append(bound)
        return Applied(len(bound))

    monkeypatch.setattr(adapting, "apply", take)
    without_page(monkeypatch, loading, LoadAdapter)

    def run(model: ModelPatcher, strength: float = 1.0, **options: Any) -> Sequence[Bound]:
        LoadAdapter.execute(NAME, strength, 1.0, model=model, **options)
        return taken.pop()

    yield run
    taken.clear()


def lora(rank: int = 4, inputs: int = 320) -> dict[str, Tensor]:
    return {
        f"{MODULE}.lora_down.weight": torch.randn(rank, inputs, 1, 1),
        f"{MODULE}.lora_up.weight": torch.randn(320, rank, 1, 1),
        f"{MODULE}.alpha": torch.tensor(2.0),
    }


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a file as trainers do that take care: whole, in place of the one before."""
    unfinished = path.with_name("unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def same(first: Sequence[Bound], second: Sequence[Bound]) -> bool:
    return all(one is other for one, other in zip(first, second, strict=True))


@pytest.mark.usefixtures("path")
def test_another_strength_and_another_clone_apply_the_very_same_adapters(load, model) -> None:
    first = load(model)
    assert len(first) == 1
    assert same(load(model, 0.5), first)
    assert same(load(model.clone(), -1.0), first)
    assert same(load(model, mode="patch"), first)


@pytest.mark.usefixtures("path")
def test_each_option_has_adapters_of_its_own_that_are_kept_too(load, model) -> None:
    whole, cut, other = load(model), load(model, rank=2), load(model, scale=AS_OTHERS)
    assert [item.adapter.rank for item in (*whole, *cut, *other)] == [4, 2, 4]
    assert not same(whole, other)
    assert same(load(model), whole)
    assert same(load(model, rank=2), cut)
    assert same(load(model, scale=AS_OTHERS), other)


@pytest.mark.usefixtures("path")
def test_trying_out_ranks_keeps_only_the_last_ones(load, model) -> None:
    first = load(model, rank=1)
    gone = weakref.ref(first[0])
    del first
    for rank in range(2, 2 + files.KEPT_OPTIONS):
        assert gone() is not None
        load(model, rank=rank)
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("path")
def test_a_binding_goes_with_its_model_and_keeps_none_alive(load) -> None:
    module = real_model("sd1")
    binding = weakref.ref(load(ModelPatcher(module, CPU, CPU))[0])
    assert binding() is not None
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None
    assert binding() is None


def test_a_rewritten_file_is_taken_up_and_the_old_binding_dropped(load, model, path) -> None:
    first = weakref.ref(load(model)[0])
    write(path, lora(rank=7))
    (second,) = load(model)
    assert second.adapter.rank == 7
    gc.collect()
    assert first() is None


def test_a_file_that_did_not_fit_is_bound_again(load, model, path, monkeypatch) -> None:
    write(path, lora(inputs=640))
    calls: list[object] = []
    monkeypatch.setattr(bindings, "bind", lambda *one: calls.append(one) or bind(*one))
    for _ in range(2):
        with pytest.raises(ShapeError, match="does not fit this model"):
            load(model)
    assert len(calls) == 2


def test_a_file_that_was_damaged_is_read_again(load, model, path) -> None:
    good = lora()
    write(path, good | {f"{MODULE}.lora_up.weight": torch.full((320, 4, 1, 1), torch.nan)})
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=f"{MODULE}.lora_up.weight contains NaN"):
            load(model)
    write(path, good)
    assert len(load(model)) == 1


def test_the_tensors_that_are_applied_lie_in_the_mapped_file(load, model, path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what is mapped")
    ((item,),) = [load(model)]
    mapped = [
        range(*(int(place, 16) for place in line.split()[0].split("-")))
        for line in maps.read_text().splitlines()
        if line.endswith(str(path))
    ]
    for tensor in item.adapter.tensors().values():
        assert any(tensor.data_ptr() in place for place in mapped)


class Bar:
    """A progress bar of the host that nobody sees."""

    made: list["Bar"]

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.made.append(self)

    def update_absolute(self, value: int) -> None:
        self.done = value


def test_a_bar_shows_how_much_of_a_large_file_is_read(load, model, path, monkeypatch) -> None:
    monkeypatch.setattr(Bar, "made", [], raising=False)
    monkeypatch.setattr(messages, "ProgressBar", Bar)
    load(model)
    assert not Bar.made
    monkeypatch.setattr(messages, "LARGE", 1)
    write(path, lora(rank=5))
    load(model)
    (bar,) = Bar.made
    assert bar.done == bar.total == 4 * (5 * 320 * 2 + 1)
