"""Every error a user can meet: each message says what is wrong, where, and what to do."""

from collections.abc import Sequence


def listed(items: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Returns the first items of a list and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun, which has an s unless the number is 1."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class AdapterError(Exception):
    """Base of all errors of the pack."""


class FileError(AdapterError):
    """A file cannot be read as an adapter at all: missing, truncated, another format."""


class FormatError(AdapterError):
    """A file can be read, but its tensors make no adapter: none is known, or which is unclear."""


class UndecidedError(FormatError):
    """What a file means cannot be told from what it holds; the message says what would tell."""


class MissingTensorError(FormatError):
    """A module of the file has some tensors of its method and lacks a required one."""


class NonFiniteError(FormatError):
    """A tensor holds NaN or infinity."""


class ShapeError(AdapterError):
    """Shapes contradict each other, inside an adapter or between an adapter and its weight."""


class NoMatchError(AdapterError):
    """No module of the file has a home in the model: most likely made for another family."""


class AmbiguousNameError(AdapterError):
    """A module name of a file means two different weights of the model."""


class UnsupportedLayerError(AdapterError):
    """A method has no meaning on this kind of layer, or a layer cannot be reached."""


class ScheduleError(AdapterError):
    """Points or widgets describe no curve over the steps."""


class BlockWeightsError(AdapterError):
    """The text of block weights says nothing that can be understood, or nothing of this model."""


class PresetError(AdapterError):
    """A preset of block weights has a name or a text that cannot be kept."""


class PresetTakenError(PresetError):
    """There is a preset of that name already."""


class PresetMissingError(PresetError):
    """There is no preset of that name."""


class StorageError(AdapterError):
    """What the pack keeps for the user cannot be read or written."""


class StackError(AdapterError):
    """A line of a stack is no row, or a row cannot be written as a line."""


class RequestError(AdapterError):
    """A request over HTTP lacks a value, or has one that means nothing."""


class TrainingError(AdapterError):
    """A training cannot start, or cannot go on, as it is asked for."""


class NoRunError(TrainingError):
    """There is no such training, or it is over."""


class DatasetError(AdapterError):
    """There is nothing to train on, or what there is cannot be used."""


class EditingError(AdapterError):
    """An adapter cannot be made out of others, or out of models, as it is asked for."""
