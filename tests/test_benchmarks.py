"""Benchmarks compare rounds, tell misses from hits, and fail in the open."""

from pathlib import Path

import pytest

import compare
import figures
import machine
import settings
import training


def result(**samples: list[float]) -> figures.Result:
    claims = (figures.Claim("hook", "merged", 1.1),)
    return figures.Result("lora", "step, LoRA", claims, samples=samples)


def test_the_spread_is_the_median_and_the_quartiles():
    assert figures.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == figures.Spread(2.0, 3.0, 4.0)


def test_a_single_number_has_no_spread():
    assert figures.spread([2.5]) == figures.Spread(2.5, 2.5, 2.5)


def test_a_slow_spell_of_the_machine_falls_out_of_a_ratio():
    # Three of five rounds on a machine ten times slower, and only half of one pair in it.
    hook = [1.2, 12.0, 12.0, 12.0, 1.2]
    merged = [1.0, 1.0, 10.0, 10.0, 1.0]
    assert figures.ratio(hook, merged) == figures.Spread(1.2, 1.2, 1.2)


def test_rounds_that_lack_a_half_are_not_compared():
    with pytest.raises(ValueError, match="1 rounds cannot be compared with 2"):
        figures.ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="0 rounds"):
        figures.ratio([], [])


def test_a_row_says_whether_its_target_is_met():
    met, _ = figures.rows(result(hook=[1.1], merged=[1.0]))
    missed, _ = figures.rows(result(hook=[1.11], merged=[1.0]))
    assert met[3:] == ("1.100 (1.100 to 1.100)", "merged", "1.10", "yes")
    assert missed[3:] == ("1.110 (1.110 to 1.110)", "merged", "1.10", "NO")


def test_a_ratio_without_a_target_is_neither_met_nor_missed():
    shown = figures.Result(
        "lora", "step", (figures.Claim("none", "merged"),), samples={"none": [1.0], "merged": [2.0]}
    )
    assert figures.rows(shown)[0][3:] == ("0.500 (0.500 to 0.500)", "merged", "", "")


def test_only_the_first_row_of_a_comparison_has_its_title():
    first, second = figures.rows(result(hook=[1.0], merged=[1.0]))
    assert first[:3] == ("step, LoRA", "hook", "1.000 s (1.000 to 1.000)")
    assert second == ("", "merged", "1.000 s (1.000 to 1.000)", "", "", "", "")


def test_memory_is_told_in_megabytes():
    shown = figures.Result("memory", "peak", (), "bytes", {"hook": [2_500_000.0]})
    assert figures.rows(shown)[0][2] == "2.5 MB (2.5 to 2.5)"


def test_a_competitor_that_fails_is_told_and_not_compared():
    shown = result(hook=[1.0, 1.0], merged=[1.0])
    shown.failed["merged"] = "RuntimeError: no"
    assert [line[1:4] for line in figures.rows(shown)] == [
        ("hook", "1.000 s (1.000 to 1.000)", ""),
        ("merged", "fails", ""),
    ]
    assert figures.remarks(shown) == ["step, LoRA, merged: RuntimeError: no"]


def test_a_table_is_aligned_markdown():
    lines = figures.table([result(hook=[1.0], merged=[1.0])]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.count("|") for line in lines] == [len(figures.HEADINGS) + 1] * 4
    assert set(lines[1]) == {"|", "-", " "}


def test_the_readme_gets_machine_table_and_remarks():
    shown = result(hook=[1.0], merged=[1.0])
    shown.notes.append("a word.")
    heading, table, remarks = figures.markdown([shown], "a machine, 2 cores").split("\n\n")
    assert heading == "Measured on a machine, 2 cores."
    assert table == figures.table([shown])
    assert remarks == "- step, LoRA: a word."


def test_the_host_is_named_by_its_version(tmp_path: Path):
    (tmp_path / "comfyui_version.py").write_text('# made\n__version__ = "0.28.0"\n', "utf-8")
    assert machine.comfyui_version(tmp_path) == "0.28.0"
    assert machine.comfyui_version(tmp_path / "other") == "of unknown version"


def test_an_unknown_comparison_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        compare.main(["lora", "nothing"])
    said = capsys.readouterr().err
    assert "there is no comparison 'nothing'" in said
    assert all(name in said for name in compare.NAMES)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], ("small", 3, 32, 1)),
        (["--full"], ("large", 7, 64, 1)),
        (["--full", "--runs", "9", "--latent", "16", "--batch", "2"], ("large", 9, 16, 2)),
    ],
)
def test_full_measures_more_on_a_larger_model(
    arguments: list[str], settings: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
):
    asked: list[object] = []
    monkeypatch.setattr(compare, "measure", lambda *given, as_markdown: asked.append(given))  # noqa: ARG005
    assert compare.main(["lora", *arguments]) == 0
    assert asked[0][:2] == (["lora"], compare.Settings(*settings))


def test_training_stands_for_all_its_comparisons(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(compare, "measure", lambda names, *_, as_markdown: asked.append(names))  # noqa: ARG005
    assert compare.main(["training"]) == 0
    assert asked == [list(training.COMPARISONS)]


def test_losses_and_steps_have_no_unit():
    losses = figures.Result("loss", "loss", (), "loss", {"ours": [0.12345]})
    steps = figures.Result("plus", "steps", (), "steps", {"ours": [91]})
    assert [figures.rows(one)[0][2] for one in (losses, steps)] == [
        "0.1235 (0.1235 to 0.1235)",
        "91 (91 to 91)",
    ]


def test_shares_are_told_in_percent():
    shown = figures.Result("quantised", "error", (), "share", {"stock": [1.5]})
    assert figures.rows(shown)[0][2] == "150.0000 % (150.0000 to 150.0000)"


def test_lora_fa_keeps_no_input_for_its_gradients():
    found = training.bytes_for_backward(settings.Settings("small", 1, 8, 1))
    (whole,), (fixed,) = (found.samples[name] for name in (training.LORA, training.FIXED))
    hidden = 4 * training.TOKENS * training.RANK
    assert (whole, fixed) == (hidden + 4 * training.TOKENS * training.WIDTH, hidden)
