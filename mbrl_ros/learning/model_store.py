"""The folder that controllers load a model from: replaced safely, with a way back."""

from collections.abc import Iterator
from contextlib import contextmanager, ExitStack
from datetime import datetime, UTC
from hashlib import sha256
import json
import os
from pathlib import Path
import shutil
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.files import locked_folder, replace_file, sync_folder
from mbrl_ros.core.paths import MODEL_FILE, share_dir
from mbrl_ros.core.yaml_file import Strict

# What tells of a model. The model itself comes last: metrics.json names the hash it belongs to.
FILES = ('ensemble.npz', 'metrics.json', 'card.md', 'run.json', 'training.csv', 'report.html',
         MODEL_FILE)
HISTORY = 'history'
HISTORY_FILE = 'history.json'
UNFINISHED = '.new'  # as replace_file names it

Action = Literal['found', 'adopted', 'promoted', 'forced', 'rolled back']


class Entry(Strict):
    """
    One change of the model in a folder.

    Attributes
    ----------
    time : str
        UTC, ISO 8601.
    action : {'found', 'adopted', 'promoted', 'forced', 'rolled back'}
        'found': the model had come into the folder by another way, such as a training.
        'adopted': there was none before.
    number : int
        Of the model's copy in the history, from one; a model keeps its number.
    hash : str
        SHA-256 of its dynamics.onnx.
    replaced : int, optional
        Number of the model that was in place before.
    details : dict
        What spoke for it: checks, data, reason.
    is_installed : bool
        False while the files at the top of the folder are being replaced.

    """

    time: str
    action: Action
    number: int
    hash: str
    replaced: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    is_installed: bool = False


_ENTRIES = TypeAdapter(list[Entry])


def find_folder(name: str) -> Path:
    """Return the folder that a model is, or will be, in: a path, or the name of a shipped one."""
    path, shipped = Path(name), share_dir() / 'models' / name
    if path.name == MODEL_FILE:
        return path.parent
    return shipped if shipped.is_dir() and not path.exists() else path


def read_history(folder: Path) -> list[Entry]:
    """
    Return the changes of the model in a folder, oldest first; empty if it has no history.

    Raises
    ------
    ModelError
        If the history cannot be read.

    """
    path = folder / HISTORY / HISTORY_FILE
    try:
        return _ENTRIES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise ModelError(f'{path}: not a history of models: {error}. The model in {folder} is not '
                         'touched; move the file away to begin a new history.') from error


@contextmanager
def opened(folder: Path) -> Iterator['ModelStore']:
    """
    Lock a folder, finish what was cut short in it, and yield its store.

    Raises
    ------
    ModelError
        If the folder cannot be written, another process has it open, or its history is damaged.

    """
    with ExitStack() as stack:
        try:
            (folder / HISTORY).mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(folder))  # as a training does
        except BlockingIOError:
            raise ModelError(f'{folder}: another promote, rollback or train is at work here. '
                             'Wait for its end, then try again.') from None
        except OSError as error:
            raise ModelError(
                f'{folder}: cannot be written: {error.strerror}. Choose a folder of your own, '
                'such as models/mine, and start the controller with model:=models/mine.'
            ) from error
        store = ModelStore(folder)
        store.repair()
        yield store


class ModelStore:
    """
    A folder with one model at the top, and copies of all it ever held below history/.

    Use `opened`, which locks and repairs it.

    Attributes
    ----------
    history : list of Entry
        Oldest first.
    finished : Entry or None
        The change that an earlier process had begun and this one finished.

    Notes
    -----
    The order of the file operations makes a kill at any moment harmless. A copy of the new model
    comes into the history under another name and is renamed when complete. Then history.json,
    replaced as a whole, says what is to be installed: from here on every opening finishes it. Then
    the files at the top are replaced one by one, each by a rename, so that dynamics.onnx is always
    a whole file; then history.json says that it is done.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = read_history(folder)
        self.finished: Entry | None = None

    @property
    def hash(self) -> str | None:
        """SHA-256 of the dynamics.onnx in place; None if there is none."""
        return _hash(self.folder)

    @property
    def number(self) -> int | None:
        """Number of the model in place; None if there is none, or the history lacks it."""
        present = self.hash
        return next((entry.number for entry in self.history if entry.hash == present), None)

    def repair(self) -> None:
        """Finish a change that was cut short, and clear away what it left."""
        with self._explained():
            self._clear()
            if self.history and not self.history[-1].is_installed:
                self._resume()

    def _clear(self) -> None:
        for rest in (self.folder / HISTORY).glob(f'*{UNFINISHED}'):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        for name in FILES:
            (self.folder / f'{name}{UNFINISHED}').unlink(missing_ok=True)

    def _resume(self) -> None:
        present, entry = self.hash, self.history[-1]
        # A model that the history does not know was trained in place since; there is no other
        # copy of it.
        is_known = present is None or present in {entry.hash for entry in self.history}
        if is_known and _hash(self._copy_of(entry)) == entry.hash:
            self._finish()
            self.finished = self.history[-1]
        else:
            self._write(self.history[:-1])

    def replace(self, new: Path, new_hash: str, action: Action,
                details: dict[str, Any]) -> Entry:
        """
        Put a model in place of the one that is there, which stays in the history.

        Parameters
        ----------
        new : Path
            Folder of the new model.
        new_hash : str
            SHA-256 of its dynamics.onnx, as it was judged.
        action, details
            For the history.

        Raises
        ------
        ModelError
            If the new model has changed since, or its metrics.json tells of another.

        """
        _check_scores(new, new_hash)
        with self._explained():
            replaced = self._keep_present()
            return self._install(self._keep(new, new_hash), new_hash, action, replaced, details)

    def roll_back(self, number: int | None = None) -> Entry:
        """
        Bring a model of the history back: by default the one that the present one replaced.

        Raises
        ------
        ModelError
            If there is no such model, or its copy is damaged.

        """
        with self._explained():
            present = self._keep_present()
            chosen = self._replaced_by(present) if number is None else number
            hashes = {entry.number: entry.hash for entry in self.history}
            if chosen not in hashes:
                what = 'model that this one replaced' if chosen is None else f'model {chosen}'
                raise ModelError(f'{self.folder}: no {what} in its history, which has '
                                 f'{", ".join(map(str, sorted(hashes))) or "none"}. '
                                 f'Try: mbrl-ros rollback {self.folder} --list')
            return self._install(chosen, hashes[chosen], 'rolled back', present, {})

    def _replaced_by(self, number: int | None) -> int | None:
        """Return the model that was in place when this one last came, other than by going back."""
        came = [entry for entry in self.history
                if entry.number == number and entry.action != 'rolled back']
        return came[-1].replaced if came else None

    def _keep_present(self) -> int | None:
        """Return the number of the model in place; one that came by another way is kept first."""
        present, number = self.hash, self.number
        if present is None or number is not None:
            return number
        number = self._keep(self.folder, present)
        entry = Entry(time=_now(), action='found', number=number, hash=present,
                      replaced=self.history[-1].number if self.history else None,
                      is_installed=True)
        self._write([*self.history, entry])
        return number

    def _keep(self, source: Path, model_hash: str) -> int:
        """Copy a model into the history, unless it is there, and return its number."""
        below = self.folder / HISTORY
        copies = {int(copy.name.partition('-')[0]): copy for copy in below.glob('[0-9]*-*')}
        for number, copy in copies.items():
            if copy.name.endswith(model_hash[:8]) and _hash(copy) == model_hash:
                return number
        number = max(copies, default=0) + 1
        final = below / f'{number:04d}-{model_hash[:8]}'
        part = final.with_name(f'{final.name}{UNFINISHED}')
        part.mkdir()
        for name in FILES:
            if (source / name).is_file():
                replace_file(part / name, (source / name).read_bytes())
        if _hash(part) != model_hash:
            raise ModelError(f'{source / MODEL_FILE}: changed while it was judged. Is a training '
                             'still writing there? Repeat the command when it is done.')
        os.rename(part, final)
        sync_folder(below)
        return number

    def _install(self, number: int, model_hash: str, action: Action, replaced: int | None,
                 details: dict[str, Any]) -> Entry:
        entry = Entry(time=_now(), action=action, number=number, hash=model_hash,
                      replaced=replaced, details=details)
        copy = self._copy_of(entry)
        if _hash(copy) != model_hash:
            raise ModelError(f'{copy}: the copy of model {number} is missing or damaged. '
                             f'Try another: mbrl-ros rollback {self.folder} --list')
        self._write([*self.history, entry])
        self._finish()
        return self.history[-1]

    def _finish(self) -> None:
        """Bring the model of the last entry to the top of the folder."""
        entry = self.history[-1]
        copy = self._copy_of(entry)
        for name in FILES:
            if (copy / name).is_file():
                replace_file(self.folder / name, (copy / name).read_bytes())
            else:  # it would tell of the model that was there before
                (self.folder / name).unlink(missing_ok=True)
        self._write([*self.history[:-1], entry.model_copy(update={'is_installed': True})])

    def _copy_of(self, entry: Entry) -> Path:
        return self.folder / HISTORY / f'{entry.number:04d}-{entry.hash[:8]}'

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(f'{error.filename or self.folder}: {error.strerror or error}. Mend '
                             'the cause and repeat the command: what it has begun is finished '
                             'then.') from error

    def _write(self, history: list[Entry]) -> None:
        replace_file(self.folder / HISTORY / HISTORY_FILE,
                     _ENTRIES.dump_json(history, indent=2) + b'\n')
        self.history = history


def _check_scores(folder: Path, model_hash: str) -> None:
    path = folder / 'metrics.json'
    try:
        told = json.loads(path.read_text())['hash']
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        told = None
    if told != model_hash:
        raise ModelError(f'{path}: tells of another model than {MODEL_FILE} beside it: the '
                         'training that wrote them was cut short. Run it to its end first.')


def _hash(folder: Path) -> str | None:
    try:
        return sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='seconds')
