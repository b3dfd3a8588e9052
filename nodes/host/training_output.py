"""What a run leaves behind: adapters with their metadata, and a state to go on from."""

import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...algorithms.errors import TrainingError, listed
from ...algorithms.formats.hashes import with_hashes
from ...algorithms.formats.metadata import AdapterMetadata
from ...algorithms.formats.parse import AdapterSet
from ...algorithms.formats.write import to_tensors
from ...algorithms.training.config import TrainingConfig
from ...algorithms.training.loop import Run
from ...algorithms.training.run_facts import Begun, facts_of
from ...algorithms.training.run_metadata import metadata_of
from ...algorithms.training.state_files import pack, unpack
from .saved_files import ENDING, numbered
from .trained_files import (
    checked_name,
    checkpoint_name,
    free_name,
    output_path,
    read_state,
    release,
    write_adapter,
    write_state,
)
from .training_network import Network


@dataclass(frozen=True)
class _Saved:
    """A state that was read."""

    run: dict[str, Any]
    config: dict[str, Any]
    file: str
    """Name of the adapter that was written with it."""
    session_id: int
    started_at: float
    checkpoints: list[str]
    """Names of the files of moments, the oldest first."""
    pictures: list[str]
    """Names of what was trained on."""


class Output:
    """The files of one run."""

    def __init__(self, name: str, config: TrainingConfig, *, resume: bool) -> None:
        """Takes the name that the user wants, and reads the state of it where it is gone on with.

        Raises:
            TrainingError: It cannot be a name; there is no state of it, or one of other settings.
        """
        self._name = checked_name(name)
        self._config = config
        self._saved = _read(self._name) if resume else None
        if self._saved is not None:
            _require_same(config, self._saved, self._name)
        self._session_id = self._saved.session_id if self._saved else random.getrandbits(32)
        self._started_at = self._saved.started_at if self._saved else time.time()
        self._network: Network | None = None
        self._begun: Begun | None = None
        self._checkpoints = [*self._saved.checkpoints] if self._saved else []

    @property
    def epoch(self) -> int:
        """The epoch that the run begins or goes on in, from 0."""
        return self._saved.run["epoch"] if self._saved else 0

    @property
    def session(self) -> tuple[int, float]:
        """The number of the run, and the Unix time at which it began."""
        return self._session_id, self._started_at

    def begin(self, network: Network, begun: Begun) -> None:
        """Takes what is known once everything is prepared, and makes the name this run's own.

        Raises:
            TrainingError: Nothing can be written.
        """
        self._network, self._begun = network, begun
        facts_of(begun, self._name, 0, 0, time.time())  # what cannot be told shows before a step
        if self._saved is None:
            self._name = free_name(self._name)

    def notes(self) -> tuple[str, ...]:
        """Returns what a run that goes on has other than it had, as sentences."""
        if self._saved is None or self._saved.pictures == self._pictures():
            return ()
        return (
            "The pictures are others than those that the run began with: what comes out is not what "
            "it would have been without a cut.",
        )

    def _pictures(self) -> list[str]:
        assert self._begun is not None, "states are written after begin"
        return [item.name for item in self._begun.dataset.items]

    def load_into(self, run: Run[Any]) -> None:
        """Puts the state into a run that goes on from it.

        Raises:
            TrainingError: The run has other layers.
        """
        if self._saved is not None:
            run.load(self._saved.run)

    def checkpoint(self, run: Run[Any]) -> str:
        """Writes the adapter and the state of the moment, and returns the adapter's name.

        Raises:
            TrainingError: Something cannot be written; what was written before is still there.
        """
        name = _unused(checkpoint_name(self._name, run.done))
        self._checkpoints.append(name)
        self._write_state(run, name)
        self._write_adapter(run, name)
        keep = self._config.keep_checkpoints
        while keep and len(self._checkpoints) > keep:
            with suppress(OSError):  # somebody has it open, or took it away
                output_path(self._checkpoints.pop(0)).unlink()
        return f"{name}{ENDING}"

    def finish(self, run: Run[Any]) -> tuple[AdapterSet, str]:
        """Writes what came out, with a state to train it further, and returns both with the name.

        Where a run was at its end already, its file is the one that is there.

        Raises:
            TrainingError: Something cannot be written; what was written before is still there.
        """
        saved = self._saved
        if saved and saved.run["step"] == run.done and output_path(saved.file).exists():
            return self._adapter_set(run, saved.file), f"{saved.file}{ENDING}"
        name = _unused(self._name)
        self._write_state(run, name)
        return self._write_adapter(run, name), f"{name}{ENDING}"

    def close(self) -> None:
        """Gives up the name of a run that wrote nothing."""
        if self._begun is not None:
            release(self._name)

    def _write_state(self, run: Run[Any], name: str) -> None:
        state = {
            "run": run.state(),
            "config": self._config.to_json(),
            "file": name,
            "session_id": self._session_id,
            "started_at": self._started_at,
            "checkpoints": self._checkpoints,
            "pictures": self._pictures(),
        }
        tensors, text = pack(state)
        write_state(self._name, tensors, text)

    def _write_adapter(self, run: Run[Any], name: str) -> AdapterSet:
        adapter_set = self._adapter_set(run, name)
        tensors, strings = to_tensors(adapter_set)
        write_adapter(output_path(name), tensors, with_hashes(strings, tensors))
        return adapter_set

    def _adapter_set(self, run: Run[Any], name: str) -> AdapterSet:
        """Returns what is learned, as it is used, with what is known of it."""
        assert self._network is not None
        assert self._begun is not None, "files are written after begin"
        facts = facts_of(self._begun, name, run.done, run.epoch, time.time())
        with run.as_used():
            adapters = {
                module: tuple(adapter.to("cpu") for adapter in several)
                for module, several in self._network.adapters().items()
            }
        strings = metadata_of(facts, minimal=not self._config.training_details)
        return AdapterSet(f"{name}{ENDING}", adapters, AdapterMetadata(strings))


def _read(name: str) -> _Saved:
    tensors, text = read_state(name)
    state = unpack(tensors, text)
    return _Saved(
        state["run"],
        json.loads(state["config"]),
        state["file"],
        state["session_id"],
        state["started_at"],
        state["checkpoints"],
        state["pictures"],
    )


def _require_same(config: TrainingConfig, saved: _Saved, name: str) -> None:
    """Checks that a run goes on as it began.

    Raises:
        TrainingError: Its settings are others now.
    """
    differences = config.differences(saved.config)
    if differences:
        raise TrainingError(
            f"{name} began with other settings, so that going on would make neither this run nor "
            f"that one: {listed(differences, 6, '; ')}. Set them as they were, or begin a new run."
        )


def _unused(name: str) -> str:
    """Returns a name of no file: with a number, where there is one already."""
    return next(free for free in numbered(name) if not output_path(free).exists())
