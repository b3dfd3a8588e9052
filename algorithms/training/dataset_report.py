"""What a dataset is, in words: how much of it, in which buckets, and what was left out."""

from ..errors import counted, listed
from .dataset import Dataset

SHOWN_BUCKETS = 12


def dataset_report(dataset: Dataset) -> str:
    """Returns the text that stands on the node."""
    notes = [f"{note}." for note in dataset.notes]
    return "\n".join([*_counts(dataset), *_buckets(dataset), *notes, *_skipped(dataset)])


def _counts(dataset: Dataset) -> list[str]:
    own = [item for item in dataset.items if not item.regularization]
    lines = [f"{counted(len(own), 'item')}, {counted(dataset.count(), 'draw')} in an epoch."]
    others = len(dataset.items) - len(own)
    if others:
        lines.append(f"{counted(others, 'item')} for regularisation, drawn as often in all.")
    folders = dataset.folders()
    for name, folder in folders.items():
        if folder.repeats > 1 or len(folders) > 1:
            kind = " for regularisation" if folder.regularization else ""
            lines.append(
                f"{name}: {counted(folder.pictures, 'item')}{kind}, each {_times(folder.repeats)}."
            )
    return lines


def _buckets(dataset: Dataset) -> list[str]:
    counts = sorted(dataset.bucket_counts().items(), key=lambda one: (-one[1], one[0]))
    words = [f"{width} x {height}: {count}" for (width, height), count in counts]
    return [f"Buckets: {listed(words, SHOWN_BUCKETS)}."]


def _skipped(dataset: Dataset) -> list[str]:
    if not dataset.skipped:
        return []
    return [f"Skipped {len(dataset.skipped)}:", *(f"  {one}" for one in dataset.skipped)]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
