"""Inputs whose keywords differ between hosts, in one place."""

from typing import TypeVar

from comfy_api.latest import io

Input = TypeVar("Input", bound=io.Input)


def advanced(value: Input) -> Input:
    """Marks an input as one that the page folds away.

    ComfyUI 0.28 has a keyword for it and 0.3.75 has not; the page of both reads the same option.
    """
    value.extra_dict = {**value.extra_dict, "advanced": True}
    return value


def optional(*values: io.Input) -> list[io.Input]:
    """Lets prompts leave inputs out, which then have their defaults."""
    for value in values:
        value.optional = True
    return [*values]


def drawn_by_page(widget: str, value: Input) -> Input:
    """Lets the page draw an input with a widget of ours, by its name there.

    ComfyUI's own keyword for it would also change the type of the input, so that no text could be
    connected.
    """
    value.extra_dict = {**value.extra_dict, "widgetType": widget}
    return value
