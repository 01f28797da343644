"""The folder of a training run: locked, with a log, a checkpoint and what it was made from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
import csv
from datetime import datetime, UTC
from importlib.util import find_spec
from io import StringIO
import json
from pathlib import Path
import platform
import shutil
import sys
import time
from typing import Any

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.files import locked_folder, replace_file
from mbrl_ros.core.versions import installed_versions
from mbrl_ros.learning import checkpoint
from mbrl_ros.learning.checkpoint import Identity
from mbrl_ros.learning.trainer import Training

HISTORY_FILE, RUN_FILE, TENSORBOARD = 'training.csv', 'run.json', 'tensorboard'
PACKAGES = ('mbrl_ros', 'torch', 'numpy', 'onnx', 'onnxruntime', 'onnxruntime-gpu')

Say = Callable[[str], None]
Row = dict[str, float]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Make a folder, and let no other training write to it meanwhile.

    Raises
    ------
    ModelError
        If it cannot be a folder, or another training writes to it.

    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)  # now, not after minutes of training
            stack.enter_context(locked_folder(folder))
        except BlockingIOError:
            raise ModelError(f'{folder}: another training is writing here. Wait for its end, or '
                             'choose another --output.') from None
        except OSError as error:
            raise ModelError(f'{folder}: cannot be a folder: {error.strerror}. Choose another '
                             '--output.') from error
        yield


class RunFolder:
    """
    What is on disk of a run that has not come to its end.

    Parameters
    ----------
    folder : Path
        Holds checkpoint.npz, training.csv and run.json.
    identity : mapping
        What the run is made from; only a checkpoint that was made from the same goes on.
    about : dict
        What else a person should know of the run in a year, for run.json.
    tensorboard : Path, optional
        Folder for TensorBoard's event files; needs the extra `tensorboard`.

    Raises
    ------
    ModelError
        If TensorBoard is wanted and not installed.

    """

    def __init__(self, folder: Path, identity: Identity, about: dict[str, Any],
                 tensorboard: Path | None = None) -> None:
        if tensorboard is not None and find_spec('tensorboard') is None:
            raise ModelError("TensorBoard is not installed. Try: pip install "
                             "'mbrl_ros[tensorboard]', or train without --tensorboard; "
                             f'{HISTORY_FILE} holds the same numbers.')
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._identity, self._about = folder, identity, about
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._started = 0.0
        self._attempt: dict[str, Any] = {}
        self._earlier: list[dict[str, Any]] = []

    def resume(self, training: Training, say: Say) -> None:
        """Go on where a killed process left the same run, and say so; begin the logs."""
        try:
            state = checkpoint.load(self._folder, self._identity)
        except ModelError as error:
            say(f'{error}. Starting anew.')
            state = None
        if state is not None:
            training.restore(state)
            self._earlier = _attempts(self._folder / RUN_FILE)
            say('the training was done; going on with its export' if training.is_done
                else f'resuming at epoch {len(training.history) + 1}')
        first = len(training.history) + 1
        self._started = time.monotonic()
        self._attempt = {'command': sys.argv, 'host': platform.node(), 'from_epoch': first,
                         'started_at': _now()}
        replace_file(self._folder / RUN_FILE, self._describe({'status': 'training'}))
        replace_file(self._folder / HISTORY_FILE, csv_text(training.history))
        if self._tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an extra)
            # Epochs that were logged after the last checkpoint come again.
            self._writer = SummaryWriter(str(self._tensorboard), purge_step=first)

    def log(self, training: Training) -> None:
        """Keep the epoch that `training` has just finished."""
        row = training.history[-1]
        with (self._folder / HISTORY_FILE).open('a', newline='') as file:
            writer = csv.DictWriter(file, list(row), lineterminator='\n')
            if len(training.history) == 1:
                writer.writeheader()
            writer.writerow(row)
        checkpoint.save(self._folder, self._identity, len(training.history), training.state())
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, int(row['epoch']))
            self._writer.flush()

    def finish(self, history: Sequence[Row], **results: Any) -> dict[str, str]:
        """
        End the logs of a run that has come to its end.

        Parameters
        ----------
        history : sequence of dict
            All epochs.
        results
            For run.json.

        Returns
        -------
        dict
            Text of training.csv and run.json, to be kept beside the model.

        """
        if self._writer is not None:
            self._writer.close()
        seconds = time.monotonic() - self._started
        self._attempt |= {'ended_at': _now(), 'seconds': round(seconds, 1)}
        return {HISTORY_FILE: csv_text(history),
                RUN_FILE: self._describe({'status': 'finished', **results})}

    def remove(self) -> None:
        """Remove the folder: all that matters of it is kept beside the model."""
        shutil.rmtree(self._folder)

    def _describe(self, results: dict[str, Any]) -> str:
        return json.dumps({**results, **self._about, 'made_from': dict(self._identity),
                           'versions': installed_versions(PACKAGES),
                           'attempts': [*self._earlier, self._attempt]}, indent=2) + '\n'


def csv_text(history: Sequence[Row]) -> str:
    """Return a history of epochs as CSV."""
    text = StringIO()
    if history:
        writer = csv.DictWriter(text, list(history[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(history)
    return text.getvalue()


def _attempts(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text())['attempts'])
    except (OSError, ValueError, KeyError, TypeError):  # a log: a run goes on without it
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='seconds')
