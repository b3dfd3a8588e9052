"""What is done with measured numbers: median, spread, ratios, and the table of them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["s", "bytes", "loss", "steps", "share"]
FORMS: Mapping[Unit, tuple[float, int, str]] = {
    "s": (1, 3, " s"),
    "bytes": (1e6, 1, " MB"),
    "loss": (1, 4, ""),
    "steps": (1, 0, ""),
    "share": (0.01, 4, " %"),
}
"""What a number is divided by, its digits, and what stands behind it."""
HEADINGS = ("comparison", "who", "median", "ratio", "against", "at most", "met")


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and the middle half of them."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Claim:
    """How two competitors compare, and what is promised of it."""

    who: str
    against: str
    at_most: float | None = None
    """The target; None where the ratio is only shown."""


@dataclass
class Result:
    """What one comparison has measured: the samples of each competitor, in rounds."""

    name: str
    title: str
    claims: tuple[Claim, ...]
    unit: Unit = "s"
    samples: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Competitors that ended in an error, and what it said."""
    notes: list[str] = field(default_factory=list)


def spread(numbers: Sequence[float]) -> Spread:
    """Returns the median and the quartiles of at least one number."""
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0])
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(low, median, high)


def ratio(numbers: Sequence[float], against: Sequence[float]) -> Spread:
    """Returns the median and the quartiles of the ratios within each round.

    Of each round, and not of the medians: competitors take turns, so what slows the machine down
    for a while slows both sides of a pair and falls out. A burst that hits one side only
    spoils one ratio, which the median forgets.

    Raises:
        ValueError: The rounds of the two differ in number, or there is none.
    """
    if len(numbers) != len(against) or not numbers:
        raise ValueError(f"{len(numbers)} rounds cannot be compared with {len(against)}.")
    return spread([one / other for one, other in zip(numbers, against, strict=True)])


def rows(result: Result) -> list[tuple[str, ...]]:
    """Returns the lines of the table for one comparison, under `HEADINGS`."""
    claims = {claim.who: claim for claim in result.claims}
    lines: list[tuple[str, ...]] = []
    for who, numbers in result.samples.items():
        if who in result.failed:
            continue
        claim = claims.get(who)
        shown = ("", "", "", "")
        if claim is not None and claim.against not in result.failed:
            found = ratio(numbers, result.samples[claim.against])
            shown = (_ratio_text(found), claim.against, *_verdict(found.median, claim.at_most))
        lines.append((result.title, who, _quantity_text(spread(numbers), result.unit), *shown))
    lines += [(result.title, who, "fails", "", "", "", "") for who in result.failed]
    return [line if number == 0 else ("", *line[1:]) for number, line in enumerate(lines)]


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table of all comparisons, aligned so that it also reads as it is."""
    lines = [HEADINGS, *(line for result in results for line in rows(result))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_padded(line, widths) for line in (lines[0], rule, *lines[1:]))


def markdown(results: Sequence[Result], machine: str) -> str:
    """Returns what the README shows: the machine, the table, and what is to be said of it."""
    said = [f"- {text}" for result in results for text in remarks(result)]
    parts = [f"Measured on {machine}.", table(results), "\n".join(said)]
    return "\n\n".join(part for part in parts if part)


def remarks(result: Result) -> list[str]:
    """Returns the errors and notes of a comparison as sentences."""
    errors = [f"{result.title}, {who}: {error}" for who, error in result.failed.items()]
    return [*errors, *(f"{result.title}: {note}" for note in result.notes)]


def _verdict(found: float, at_most: float | None) -> tuple[str, str]:
    if at_most is None:
        return "", ""
    return f"{at_most:.2f}", "yes" if found <= at_most else "NO"


def _ratio_text(found: Spread) -> str:
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


def _quantity_text(found: Spread, unit: Unit) -> str:
    divisor, digits, symbol = FORMS[unit]
    low, median, high = (
        f"{number / divisor:.{digits}f}" for number in (found.low, found.median, found.high)
    )
    return f"{median}{symbol} ({low} to {high})"


def _padded(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
    return f"| {' | '.join(cells)} |"
