"""Make recorded decisions again on the CPU, and compare them with what was recorded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType

import numpy as np

from mbrl_ros.control.build import build_engine, Engine
from mbrl_ros.control.mpc import Decision
from mbrl_ros.control.record import Outcome, Record, Setup, tools
from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.paths import share_dir
from mbrl_ros.runtime import companions

# Of an action's range: how far a plan of another provider may be from the CPU's. Costs are only
# ranked: coarser numbers change nothing until two candidates swap places, then a whole elite
# changes. 200 plans of the cart-pole in bf16: half of them exact, the farthest 0.12 away.
TOLERANCE = 0.2


@dataclass(frozen=True)
class Comparison:
    """
    A decision made again beside the recorded one.

    Attributes
    ----------
    differences : tuple of str
        What is not the same bit for bit, one line each.
    deviation : float
        Largest difference of a planned action, as a share of the action's range.
    must_be_exact : bool
        Whether it was recorded on the CPU; if not, plans may differ by `TOLERANCE`.

    """

    differences: tuple[str, ...]
    deviation: float
    must_be_exact: bool

    @property
    def is_exact(self) -> bool:
        """Whether everything is the same, bit for bit."""
        return not self.differences

    @property
    def is_good(self) -> bool:
        """Whether it is exact, or close enough where it need not be."""
        return self.is_exact or (not self.must_be_exact and self.deviation <= TOLERANCE)


class Replayer:
    """
    Makes recorded decisions again with the models they were made with.

    Parameters
    ----------
    places : sequence of Path
        Model files to consider beside those where the models were.

    """

    def __init__(self, places: Sequence[Path] = ()) -> None:
        self._places = places
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> 'Replayer':
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Stop all threads."""
        for engine in self._engines.values():
            engine.close()

    def decide(self, record: Record) -> Decision:
        """
        Make a decision again; the first one of a setup opens its engine.

        Raises
        ------
        ModelError
            If the model is not to be found.
        PlanningError
            If too few candidates have a finite cost.

        """
        setup = record.setup
        key = setup.model_dump_json()
        if key not in self._engines:
            self._engines[key] = open_engine(setup, find_recorded_model(setup, self._places))
        return self._engines[key].mpc.decide(record.inputs)


def open_engine(setup: Setup, model: Path) -> Engine:
    """
    Build what plans on the CPU as recorded, with the recorded model or another one.

    Raises
    ------
    ModelError
        If the model does not fit the robot, or a value.onnx or policy.onnx is not what it was.

    """
    for path, digest in setup.companions.items():
        found = companions.digest(path)
        if found != digest:
            raise ModelError(f'{path}: hash {found[:16]}; the decision was made with '
                             f'{digest[:16]}. Put that file back')
    return build_engine(setup.robot, setup.task, setup.config(model), setup.num_tiles)


def hash_of(model: Path) -> str:
    """Return the SHA-256 of a model file, as hexadecimal text."""
    return sha256(model.read_bytes()).hexdigest()


def find_recorded_model(setup: Setup, places: Sequence[Path] = ()) -> Path:
    """
    Return where the very model lies that a decision was made with.

    Raises
    ------
    ModelError
        If it is at none of the places, nor where it was, nor among the shipped models.

    """
    looked = []
    shipped = sorted((share_dir() / 'models').glob('*/dynamics.onnx'))
    for path in dict.fromkeys([*places, Path(setup.model), *shipped]):
        try:
            found = hash_of(path)
        except OSError as error:
            looked.append(f'{path}: {error.strerror}')
            continue
        if found == setup.model_hash:
            return path
        looked.append(f'{path}: hash {found[:16]}')
    raise ModelError(
        f'the model with hash {setup.model_hash[:16]}, which decided, is not there. Looked at:\n  '
        + '\n  '.join(looked) + '\nIf it was moved, say where it is: --model PATH. One decision '
        'may also be shown to another model of the same robot: --at SECONDS --model PATH.')


def compare(record: Record, decision: Decision) -> Comparison:
    """
    Compare a decision made again with the recorded one.

    Parameters
    ----------
    record : Record
        What was recorded.
    decision : Decision
        Made from its inputs, on the CPU.

    """
    old, new = record.outcome, replace(Outcome.of(decision), plan_s=record.outcome.plan_s)
    robot = record.setup.robot
    lines = [_difference('start', old.start, new.start, robot.state_names),
             _difference('actions', old.actions, new.actions, robot.action_names)]
    lines += [f'{name}: {getattr(old, name)} was recorded, now it is {getattr(new, name)}'
              for name in ('spread', 'rejected')
              if repr(getattr(old, name)) != repr(getattr(new, name))]
    deviation = float(np.max(np.abs(new.actions - old.actions)
                             / (robot.action_max - robot.action_min)))
    return Comparison(tuple(line for line in lines if line), deviation,
                      record.setup.provider == 'cpu')


def changed_tools(setup: Setup) -> list[str]:
    """Return what may have changed the last bits since the recording, one line each."""
    here = tools()
    return [f'{name}: recorded with {value}, here is {here.get(name, "none")}'
            for name, value in setup.tools.items() if value != here.get(name)]


def _difference(what: str, old: np.ndarray, new: np.ndarray, names: list[str]) -> str:
    """Return where two arrays, the names along their last axis, are not the same bit for bit."""
    if old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes():
        return ''
    if old.dtype != new.dtype or old.shape != new.shape:
        return (f'{what}: {old.dtype} of shape {old.shape} was recorded, now it is {new.dtype} '
                f'of shape {new.shape}')
    apart = np.abs(new - old)
    place = np.unravel_index(int(np.argmax(apart)), apart.shape)
    step = f', step {place[0]}' if len(place) > 1 else ''
    return (f'{what}: {int(np.sum(new != old))} of {old.size} numbers, by up to '
            f'{apart[place]:.3g} ({names[place[-1]]}{step})')
