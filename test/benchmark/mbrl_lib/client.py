"""Our side of the worker: makes mbrl-lib's environment, starts the worker in it and asks it."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Self

import numpy as np

HERE = Path(__file__).parent
REQUIREMENTS = HERE / 'requirements.txt'
WORKER = HERE / 'worker'  # a folder, so that -I finds what is in it
TORCH = 'torch==2.13.0'
MBRL = 'mbrl==0.2.0'
TAIL_LINES = 20


def tail(text: str) -> str:
    """Return the last lines of an output."""
    return '\n'.join(text.splitlines()[-TAIL_LINES:])


def environment(folder: Path, log: Callable[[str], None]) -> Path:
    """
    Make mbrl-lib's environment, unless it is there already and up to date.

    Parameters
    ----------
    folder : Path
        Where; one made for other requirements is made anew.
    log : callable
        Told each command before it runs.

    Returns
    -------
    Path
        Its Python.

    Raises
    ------
    RuntimeError
        If a command fails, with the end of its output; or if the folder holds something else.

    """
    # The stamp, written last, holds what was installed: half an environment has none.
    stamp, python = folder / 'installed.txt', folder / 'bin/python'
    wanted = f'{TORCH}\n{MBRL}\n{REQUIREMENTS.read_text()}'
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    if folder.exists() and any(folder.iterdir()):
        if not (folder / 'pyvenv.cfg').is_file():
            raise RuntimeError(f'{folder} is not empty, and no Python environment')
        shutil.rmtree(folder)
    install = [str(python), '-I', '-m', 'pip', 'install']
    for command in ([sys.executable, '-m', 'venv', str(folder)],
                    [*install, TORCH],
                    [*install, '-r', str(REQUIREMENTS)],
                    [*install, '--no-deps', MBRL]):
        log(' '.join(command))
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)
        if done.returncode:
            raise RuntimeError(f'{" ".join(command)}: exit status {done.returncode}\n'
                               f'{tail(done.stdout)}')
    stamp.write_text(wanted)
    return python


class MbrlLib:
    """
    mbrl-lib in a process of its own; use it in a `with`.

    Parameters
    ----------
    python : Path
        Of mbrl-lib's environment.
    weights_path : Path, optional
        Ensemble.arrays() as an .npz file: what it is to plan with.
    threads : int
        Of torch.
    device : {'cpu', 'cuda'}
        Where the model runs.

    """

    def __init__(self, python: Path, weights_path: Path | None, threads: int,
                 device: str = 'cpu') -> None:
        # -I: our PYTHONPATH (ROS sets one) must not leak into its environment.
        weights = [] if weights_path is None else ['--weights', str(weights_path)]
        self._command = [str(python), '-I', str(WORKER), str(threads), *weights,
                         '--device', device]

    def __enter__(self) -> Self:
        """Start the worker, and wait until it has loaded the weights."""
        self._folder = tempfile.TemporaryDirectory(prefix='mbrl_lib_')
        self._errors = Path(self._folder.name) / 'stderr'
        with self._errors.open('w') as errors:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            self.info()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker: it leaves when its input ends, unless it is in a plan."""
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer; RuntimeError if it is an error, or none."""
        try:
            self._process.stdin.write(json.dumps(request) + '\n')
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ''
        if not line:
            status = self._process.wait()
            raise RuntimeError(f'{" ".join(self._command)}: exit status {status}\n'
                               f'{tail(self._errors.read_text())}')
        answer = json.loads(line)
        if 'error' in answer:
            raise RuntimeError(f'mbrl-lib, {request["do"]}: {answer["error"]}')
        return answer

    def info(self) -> dict[str, Any]:
        """Return versions, threads, device; with weights the budget and its model's sizes."""
        return self._ask(do='info')

    def plan(self, state: np.ndarray, seed: int, **budget: int) -> tuple[float, np.ndarray]:
        """
        Plan once, from a cold start.

        Parameters
        ----------
        state : array, shape (S,)
            Where the plan starts.
        seed : int
            Of all its random numbers.
        **budget
            Any of population, particles, horizon and iterations; by default mbrl-lib's own.

        Returns
        -------
        seconds : float
            That the plan took, by the worker's clock.
        actions : array, shape (H, A)
            The plan.

        """
        answer = self._ask(do='plan', state=np.asarray(state).tolist(), seed=seed, **budget)
        return answer['seconds'], np.array(answer['actions'])

    def costs(self, state: np.ndarray, actions: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """
        Evaluate candidates by its model and reward, under our random numbers.

        Parameters
        ----------
        state, actions, noise : array, shapes (S,), (P, H, A) and (H, K, S)
            As in our rollout; particle k belongs to member k // (K / members) all the way.

        Returns
        -------
        array, shape (P,)
            Minus its accumulated rewards.

        """
        path = self._save(state=state, actions=actions, noise=noise)
        return np.array(self._ask(do='costs', file=path)['costs'])

    def data(self, arrays: dict[str, np.ndarray], members: int,
             seed: int) -> dict[str, float]:
        """
        Give it data, for which it makes an untrained model.

        Parameters
        ----------
        arrays : dict
            training_states (N, S), training_actions (N, A), training_next_states (N, S), and the
            same of the holdout.
        members : int
            Networks.
        seed : int
            Of everything random.

        Returns
        -------
        dict
            Its settings: learning rate, weight decay, batch size, epochs, patience.

        """
        return self._ask(do='data', file=self._save(**arrays), members=members,
                         seed=seed)['settings']

    def epochs(self, number: int) -> np.ndarray:
        """Train for epochs; return the times [s] of all but the first, shape (number - 1,)."""
        return np.array(self._ask(do='epochs', number=number)['seconds'])

    def fit(self, capped: bool) -> tuple[float, int, np.ndarray, np.ndarray]:
        """
        Train an untrained model on its own schedule.

        Parameters
        ----------
        capped : bool
            Whether the epochs its configuration allows to one call end it, or its patience alone.

        Returns
        -------
        seconds : float
            By the worker's clock.
        epochs : int
            How many there were.
        mean, std : array, shapes (E, N, S)
            Of the changes in the holdout, in physical units.

        """
        path = Path(self._folder.name) / 'answer.npz'
        answer = self._ask(do='fit', capped=capped, file=str(path))
        with np.load(path) as arrays:
            return answer['seconds'], answer['epochs'], arrays['mean'], arrays['std']

    def _save(self, **arrays: np.ndarray) -> str:
        path = Path(self._folder.name) / 'request.npz'
        np.savez(path, **arrays)
        return str(path)
