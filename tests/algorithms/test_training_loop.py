"""The loop of training: it learns, it can be cut anywhere, and the same settings give the same bits."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.optimizers import OptimizerConfig
from anyadapter.algorithms.training.schedules import ScheduleConfig
from anyadapter.algorithms.training.state_files import pack, unpack
from toy_training import Settings, ToyTraining, lora

SHORT = Settings(lora(), steps=6, pictures=6)


def method_named(name: str) -> MethodConfig:
    return replace(METHODS[name].recommended(), rank=8, conv_rank=4)


def same(first: ToyTraining, other: ToyTraining) -> bool:
    others = other.tensors()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.tensors().items())


def test_the_loss_falls() -> None:
    losses = ToyTraining(Settings(lora(), steps=40, batch_size=4, pictures=4)).losses()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_two_runs_with_one_seed_give_the_same_bits() -> None:
    runs = [ToyTraining(SHORT), ToyTraining(SHORT)]
    losses = [run.losses() for run in runs]
    assert losses[0] == losses[1]
    assert same(*runs)


def test_another_seed_gives_another_result() -> None:
    runs = [ToyTraining(SHORT), ToyTraining(replace(SHORT, seed=1))]
    assert runs[0].losses() != runs[1].losses()


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_run_that_is_cut_equals_one_that_is_not(cut: int, tmp_path) -> None:
    settings = replace(
        SHORT,
        method=lora(dropout=0.1, rank_dropout=0.2),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule=ScheduleConfig("cosine", warmup=2.0), ema_decay=0.9
        ),
        accumulation=2,
        max_norm=1.0,
    )
    torch.manual_seed(3)
    whole = ToyTraining(settings)
    losses = whole.losses()
    torch.manual_seed(3)
    first = ToyTraining(settings)
    before = first.losses(cut)
    tensors, text = pack(first.run.state())
    save_file(tensors, tmp_path / "state.safetensors")
    torch.manual_seed(99)
    second = ToyTraining(settings)
    second.run.load(unpack(load_file(tmp_path / "state.safetensors"), text))
    assert before + second.losses() == losses
    assert same(second, whole)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_bit_for_bit(method: str) -> None:
    settings = replace(SHORT, method=method_named(method), steps=4)
    whole = ToyTraining(settings)
    whole.losses()
    first = ToyTraining(settings)
    first.losses(2)
    second = ToyTraining(settings)
    tensors, text = pack(first.run.state())
    second.run.load(unpack(tensors, text))
    second.losses()
    assert same(second, whole)


def test_a_step_that_breaks_off_is_done_again_as_if_nothing_had_been() -> None:
    settings = replace(SHORT, method=lora(dropout=0.1, rank_dropout=0.2), accumulation=2)
    torch.manual_seed(3)
    whole = ToyTraining(settings)
    losses = whole.losses()
    torch.manual_seed(3)
    broken = ToyTraining(settings)
    before = broken.losses(2)
    calls = iter([False, True])

    def stop(*_: object) -> None:
        if next(calls, False):
            raise InterruptedError

    with (
        broken.unet.register_forward_pre_hook(stop),
        pytest.raises(InterruptedError),
    ):
        broken.losses()
    assert before + broken.losses() == losses
    assert same(broken, whole)


def test_a_batch_of_8_equals_4_batches_of_2() -> None:
    settings = Settings(lora(), steps=3, pictures=8, batch_size=8)
    large = ToyTraining(settings)
    small = ToyTraining(replace(settings, batch_size=2, accumulation=4))
    assert small.losses() == pytest.approx(large.losses(), rel=1e-5)
    for name, tensor in large.tensors().items():
        torch.testing.assert_close(small.tensors()[name], tensor, rtol=1e-3, atol=2e-5)


def test_sampling_in_between_changes_nothing() -> None:
    plain, watched = ToyTraining(SHORT), ToyTraining(SHORT)
    plain.losses()
    watched.losses(3)
    before = watched.tensors()
    with watched.run.as_used() as network:
        assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in watched.tensors().items())
    watched.run.validate([(0, 1), (2,)], seed=5)
    watched.losses()
    assert same(watched, plain)


def test_validation_is_the_same_at_every_call() -> None:
    training = ToyTraining(SHORT)
    assert training.run.validate([(0, 1)], 5) == training.run.validate([(0, 1)], 5)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything() -> None:
    training = ToyTraining(SHORT)
    training.losses(2)
    before = training.tensors()
    with torch.no_grad():
        training.unet.conv_out.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="step 3"):
        training.losses()
    assert training.run.done == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in training.tensors().items())


@pytest.mark.parametrize("bad", [0, 1], ids=["first", "last"])
def test_after_a_loss_that_is_not_finite_the_step_can_be_done_again(bad: int) -> None:
    settings = replace(SHORT, method=lora(dropout=0.1, rank_dropout=0.2), accumulation=2)
    torch.manual_seed(3)
    whole = ToyTraining(settings)
    losses = whole.losses()
    torch.manual_seed(3)
    broken = ToyTraining(settings)
    before = broken.losses(2)
    tensors, calls = broken.tensors(), iter(range(2))

    def spoil(_module: object, _given: object, output: Tensor) -> Tensor:
        return output * float("inf") if next(calls) == bad else output

    with (
        broken.unet.register_forward_hook(spoil),
        pytest.raises(TrainingError, match=r"loss of step 3 is (inf|nan)"),
    ):
        broken.losses()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in broken.tensors().items())
    assert all(parameter.grad is None for parameter in broken.network.parameters())
    assert before + broken.losses() == losses
    assert same(broken, whole)


def test_a_state_of_another_network_is_refused() -> None:
    state = ToyTraining(SHORT).run.state()
    other = ToyTraining(replace(SHORT, method=lora(rank=2)))
    with pytest.raises(TrainingError, match="another rank"):
        other.run.load(state)


def test_trainings_in_one_process_do_not_leak_into_each_other() -> None:
    alone = ToyTraining(SHORT)
    alone.losses()
    linear = ToyTraining(replace(SHORT, method=MethodConfig("LoRA-LierLa", 4, 4.0)))
    beside, other = ToyTraining(SHORT), linear
    for _ in range(SHORT.steps):
        beside.losses(1)
        other.losses(1)
    assert same(beside, alone)
    assert not any("conv" in name for name in linear.tensors())
