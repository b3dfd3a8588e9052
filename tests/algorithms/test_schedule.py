"""The curve over the steps: what it is between its points, and what is no curve."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from anyadapter.algorithms.errors import ScheduleError
from anyadapter.algorithms.schedule import Interpolation, Schedule, schedule_from_choices

CHOICES: dict[str, Any] = {
    "start": 0.2,
    "end": 0.6,
    "from_or_inside": 1.0,
    "to_or_outside": 0.25,
    "points": "0:1, 1:0",
    "interpolation": "linear",
}

# Far enough apart for `CLOSEST_POINTS`; each may be a jump.
PROGRESSES = st.lists(st.integers(0, 1000), min_size=1, max_size=8, unique=True).map(sorted)
VALUES = st.floats(-1000, 1000)


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[tuple[float, float], ...], Interpolation]:
    """Points and interpolation, put together in the test: the check of types is random."""
    points: list[tuple[float, float]] = []
    for thousandth in draw(PROGRESSES):
        for _ in range(draw(st.integers(1, 2))):
            points.append((thousandth / 1000, draw(VALUES)))
    return tuple(points), draw(st.sampled_from(get_args(Interpolation)))


def test_constant_is_the_same_everywhere():
    schedule = Schedule.constant(0.7)
    assert [schedule.at(progress) for progress in (0.0, 0.5, 1.0)] == [0.7, 0.7, 0.7]


def test_before_0_and_after_1_it_is_as_at_0_and_at_1():
    schedule = Schedule.from_text("0:1, 1:0")
    assert (schedule.at(-math.inf), schedule.at(-0.5)) == (1.0, 1.0)
    assert (schedule.at(1.5), schedule.at(math.inf)) == (0.0, 0.0)


def test_before_the_first_point_and_after_the_last_it_keeps_their_values():
    schedule = Schedule.from_text("0.25:2, 0.75:3")
    assert (schedule.at(0.0), schedule.at(0.1)) == (2.0, 2.0)
    assert (schedule.at(0.9), schedule.at(1.0)) == (3.0, 3.0)


def test_a_progress_that_is_no_number_is_refused():
    with pytest.raises(ScheduleError, match="not a number"):
        Schedule.constant(1.0).at(math.nan)


def test_linear_is_straight_between_points():
    schedule = Schedule.from_text("0:1, 0.5:0, 1:4")
    assert (schedule.at(0.25), schedule.at(0.625)) == (0.5, 1.0)


def test_cosine_is_half_a_wave_between_points():
    schedule = Schedule.from_text("0:1, 1:0", "cosine")
    for progress in (0.1, 0.25, 0.5, 0.9):
        assert schedule.at(progress) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


def test_step_keeps_a_value_until_the_next_point():
    schedule = Schedule.from_text("0:1, 0.5:0, 1:4", "step")
    assert (schedule.at(0.4999), schedule.at(0.5), schedule.at(0.9999)) == (1.0, 0.0, 0.0)
    assert schedule.at(1.0) == 4.0


@pytest.mark.parametrize(
    "text",
    [
        "0:0, 1:2",
        "0:1, 0.3:0.2, 1:0",
        "0:0, 0.1:0.9, 0.4:1, 0.5:-2, 0.9:-2, 1:3",
        "0:0, 0.9:1, 1:9",
    ],
)
def test_monotone_cubic_is_the_one_of_scipy(text: str):
    schedule = Schedule.from_text(text, "monotone cubic")
    other = PchipInterpolator(*zip(*schedule.points, strict=True))
    for step in range(51):
        # Other order of the same operations.
        assert schedule.at(step / 50) == pytest.approx(float(other(step / 50)), abs=1e-12)


def test_monotone_cubic_starts_anew_at_a_jump():
    whole = Schedule.from_text("0:0, 0.2:1, 0.5:2, 0.5:7, 0.8:3, 1:0", "monotone cubic")
    left = Schedule.from_text("0:0, 0.2:1, 0.5:2", "monotone cubic")
    right = Schedule.from_text("0.5:7, 0.8:3, 1:0", "monotone cubic")
    assert [whole.at(x) for x in (0.1, 0.4)] == [left.at(x) for x in (0.1, 0.4)]
    assert [whole.at(x) for x in (0.5, 0.6, 0.9)] == [right.at(x) for x in (0.5, 0.6, 0.9)]


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_at_a_jump_the_later_point_counts(interpolation: Interpolation):
    schedule = Schedule.from_text("0:1, 0.5:1, 0.5:0, 1:0", interpolation)
    assert schedule.at(math.nextafter(0.5, 0)) == 1.0
    assert schedule.at(0.5) == 0.0


def test_a_window_counts_its_start_and_leaves_its_end_to_the_next_one():
    schedule = Schedule.window(0.2, 0.6, inside=1.0, outside=0.25)
    assert (schedule.at(0.0), schedule.at(math.nextafter(0.2, 0))) == (0.25, 0.25)
    assert (schedule.at(0.2), schedule.at(math.nextafter(0.6, 0))) == (1.0, 1.0)
    assert (schedule.at(0.6), schedule.at(1.0)) == (0.25, 0.25)


def test_a_window_over_everything_is_inside_from_0_to_1():
    schedule = Schedule.window(0.0, 1.0, inside=1.0, outside=0.0)
    assert (schedule.at(0.0), schedule.at(1.0)) == (1.0, 1.0)
    assert {value for _, value in schedule.sample(5)} == {1.0}


def test_an_empty_window_is_outside_everywhere():
    assert Schedule.window(0.3, 0.3, inside=1.0, outside=0.2) == Schedule.constant(0.2)


def test_a_ramp_without_length_is_a_jump():
    schedule = Schedule.ramp(0.5, 0.5, 1.0, 0.0, "cosine")
    assert (schedule.at(math.nextafter(0.5, 0)), schedule.at(0.5)) == (1.0, 0.0)


@given(parts(), st.floats(-0.5, 1.5))
def test_a_value_lies_between_those_of_the_neighbouring_points(parts: Any, progress: float):
    schedule = Schedule(*parts)
    before = [point for point in schedule.points if point[0] <= progress][-1:]
    after = [point for point in schedule.points if point[0] > progress][:1]
    values = [value for _, value in before + after]
    assert min(values) <= schedule.at(progress) <= max(values)


@given(parts())
def test_the_curve_goes_through_its_points(parts: Any):
    schedule = Schedule(*parts)
    last = dict(schedule.points)
    assert {progress: schedule.at(progress) for progress in last} == last


@given(parts())
def test_text_is_read_back_exactly(parts: Any):
    schedule = Schedule(*parts)
    read = Schedule.from_text(schedule.as_text(), schedule.interpolation)
    assert read == schedule
    assert hash(read) == hash(schedule)


@given(parts(), st.integers(2, 40))
def test_a_sample_is_the_curve_from_0_to_1(parts: Any, count: int):
    schedule = Schedule(*parts)
    sample = schedule.sample(count)
    progresses = [progress for progress, _ in sample]
    assert progresses == sorted(progresses)
    assert (progresses[0], progresses[-1]) == (0.0, 1.0)
    last = dict(sample)
    assert {progress: schedule.at(progress) for progress in last} == last
    assert {progress for progress, _ in schedule.points} <= set(progresses)
    assert {step / (count - 1) for step in range(count)} <= set(progresses)


def test_a_sample_has_both_sides_of_a_jump():
    assert Schedule.window(0.0, 0.5, inside=1.0, outside=0.0).sample(3) == [
        (0.0, 1.0),
        (0.5, 1.0),
        (0.5, 0.0),
        (1.0, 0.0),
    ]


def test_a_sample_of_steps_has_level_lines_and_edges():
    assert Schedule.from_text("0:1, 0.5:3", "step").sample(2) == [
        (0.0, 1.0),
        (0.5, 1.0),
        (0.5, 3.0),
        (1.0, 3.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "0:1, 0.5:0.3, 1:-2",
        "0 : 1 ,\n50%:.3\n\n 100 %: -2,",
        "0:1\r\n.5:3e-1\r\n1.:-200%",
    ],
)
def test_points_are_read_in_lines_with_commas_and_percents(text: str):
    assert Schedule.from_text(text).points == ((0.0, 1.0), (0.5, 0.3), (1.0, -2.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["at least one point", "progress:value"]),
        (" ,\n", ["at least one point", "progress:value"]),
        ("0:1\n0.5=0.3", ["Point 2", "line 2", '"0.5=0.3"', "no colon", "0.5:0.3"]),
        ("0:1, 0,5:1", ["Point 2", "line 1", '"0"', "no colon", "decimals with a point"]),
        ("0:1, x:0.3", ["Point 2", '"x" is not a number']),
        ("0:1, 0.5:", ["Point 2", '"" is not a number']),
        ("0:1, 0.5:0.3:2", ["Point 2", '"0.3:2" is not a number']),
        ("0:nan", ["Point 1", '"nan" is not a number']),
        ("0:1_0", ["Point 1", '"1_0" is not a number']),
        ("0:1e999", ["Point 1", "from -1000 to 1000"]),
        ("0:1\n1:-1000.5", ["Point 2", "line 2", "from -1000 to 1000"]),
        ("0:1, 50:0.3", ["Point 2", '"50:0.3"', "from 0", "100%"]),
        ("-0.1:1", ["Point 1", "from 0", "100%"]),
        ("0:1, 0.7:1, 0.5:0", ["Point 3 (0.5:0)", "(0.7:1)", "order of progress"]),
        ("0.5:1, 0.5:2, 0.5:3", ["Point 3 (0.5:3)", "third", "A jump has two"]),
        ("0.5:1, 0.5000001:2", ["Point 2", "too close", "same progress"]),
    ],
)
def test_text_that_is_no_curve_is_refused_with_its_place(text: str, words: list[str]):
    with pytest.raises(ScheduleError) as failure:
        Schedule.from_text(text)
    for word in words:
        assert word in str(failure.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_are_finite(value: float):
    with pytest.raises(ScheduleError, match="from -1000 to 1000"):
        Schedule.constant(value)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("constant", Schedule.constant(1.0)),
        ("linear", Schedule.from_text("0.2:1, 0.6:0.25")),
        ("cosine", Schedule.from_text("0.2:1, 0.6:0.25", "cosine")),
        ("window", Schedule.from_text("0.2:0.25, 0.2:1, 0.6:1, 0.6:0.25")),
        ("points", Schedule.from_text("0:1, 1:0")),
    ],
)
def test_presets(preset: str, expected: Schedule):
    assert schedule_from_choices(preset, **CHOICES) == expected


@pytest.mark.parametrize("preset", ["constant", "linear", "cosine", "window"])
def test_presets_do_not_read_points(preset: str):
    choices = CHOICES | {"points": "nonsense", "interpolation": "nonsense"}
    assert schedule_from_choices(preset, **choices) == schedule_from_choices(preset, **CHOICES)


@pytest.mark.parametrize(
    ("preset", "wrong", "message"),
    [
        ("sine", {}, 'no preset "sine".*constant, linear, cosine, window, points'),
        ("points", {"interpolation": "cubic"}, 'no interpolation "cubic".*monotone cubic'),
        ("linear", {"start": 0.7}, "start .0.7. lies after the end .0.6."),
        ("window", {"start": 0.7}, "start .0.7. lies after the end .0.6."),
        ("window", {"end": 1.5}, "from 0"),
        ("cosine", {"start": math.nan}, "from 0"),
    ],
)
def test_choices_that_make_no_curve_are_refused(preset: str, wrong: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=message):
        schedule_from_choices(preset, **CHOICES | wrong)
