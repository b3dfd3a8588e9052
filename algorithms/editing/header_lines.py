"""Lines that a user lays over the metadata of a file: `key = value`, or `key =` to take one out."""

from collections.abc import Mapping

from ..errors import EditingError


def parse_lines(text: str) -> dict[str, str]:
    """Returns key -> value as the lines say it, the value empty where the key is to go.

    Args:
        text: One key to a line; empty lines, and those that begin with #, say nothing.

    Raises:
        EditingError: A line says neither.
    """
    said: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not key or not equals:
            raise EditingError(
                f'Line {number} of the metadata, "{line.strip()}", is not understood. Write '
                "key = value, or key = to take a key out."
            )
        said[key] = value
    return said


def laid_over(strings: Mapping[str, str], text: str) -> dict[str, str]:
    """Returns metadata with what the lines of a text say.

    Raises:
        EditingError: A line is not understood.
    """
    said = parse_lines(text)
    kept = {key: value for key, value in strings.items() if key not in said}
    return {**kept, **{key: value for key, value in said.items() if value}}
