"""How fast methods learn on toys whose curves are known: the reference's tables, as orders of curves."""

from functools import cache

import pytest

from toy_regression import half_at, regression


@cache
def curve(method: str, ratio: float = 1.0, steps: int = 400) -> tuple[float, ...]:
    return tuple(regression(method, ratio, steps))


def test_lora_learns_the_change() -> None:
    assert curve("LoRA-LierLa")[-1] < 0.25 * curve("LoRA-LierLa")[0]


@pytest.mark.parametrize(("ratio", "sooner"), [(4.0, 1.8), (16.0, 2.6)])
def test_lora_plus_reaches_half_of_the_loss_sooner(ratio: float, sooner: float) -> None:
    plain, plus = half_at(curve("LoRA-LierLa")), half_at(curve("LoRA+", ratio))
    assert plain / plus == pytest.approx(sooner, rel=0.15)


def test_lora_fa_ends_where_its_fixed_directions_end() -> None:
    free, fixed = curve("LoRA-LierLa"), curve("LoRA-FA")
    assert fixed[-1] > 0.9 * fixed[0]
    assert free[-1] < 0.3 * fixed[-1]
