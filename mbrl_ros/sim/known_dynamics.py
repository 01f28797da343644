"""One control period of a simulated robot, foreseen by its own physics."""

from collections import OrderedDict
from copy import copy
from dataclasses import dataclass

import mujoco
import numpy as np

from mbrl_ros.sim.moments import FULL_STATE, Moments
from mbrl_ros.sim.mujoco_robot import MujocoRobot
from mbrl_ros.sim.state_reader import StateReader

# State vectors whose full states are remembered: more than a plan asks about.
NUM_REMEMBERED = 1000


@dataclass(frozen=True)
class Start:
    """Full state of the physics (F,), and where its solver starts searching (nv,)."""

    full: np.ndarray
    warmstart: np.ndarray


class KnownDynamics:
    """
    One control period of a simulated robot, foreseen by its own physics.

    Parameters
    ----------
    body : MujocoRobot
        The robot: whatever changes its physics changes what is foreseen. It is never moved.

    Attributes
    ----------
    members : int
        One.
    step_std : array, shape (S,)
        Ones.

    Raises
    ------
    SpecError
        If the robot observes what no state of the physics has.

    Notes
    -----
    A state vector shows a part of the physics only: the half-cheetah does not know where it is.
    So the full state behind a vector is looked up: of a predicted one that which was predicted
    with it, of any other that of the body when the vector was first asked about. Once the body's
    time goes back, as at a reset, all are forgotten.

    """

    members = 1

    def __init__(self, body: MujocoRobot) -> None:
        self.body, self.step_std = body, np.ones(len(body.spec.observation))
        self._reader, self._scratch = StateReader(body), copy(body.data)
        self._known: OrderedDict[bytes, Start] = OrderedDict()
        self._time_s = 0.0

    def __call__(self, observation: np.ndarray,
                 action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Predict one step.

        Parameters
        ----------
        observation, action : array, shapes (1, N, S) and (1, N, A), or (N, S) and (N, A)
            As the learned dynamics take them.

        Returns
        -------
        mean, std : array, each of shape (1, N, S)
            Of the next state: not a number if the physics diverges; zeros.

        """
        pairs = zip(observation.reshape(-1, observation.shape[-1]),
                    action.reshape(-1, action.shape[-1]), strict=True)
        mean = np.array([[self._step(*pair) for pair in pairs]])
        return mean, np.zeros_like(mean)

    def spread(self, mean: np.ndarray) -> np.ndarray:
        """Return how much the members disagree, shape (N,): one alone never does."""
        return np.zeros(mean.shape[1])

    def start(self, observation: np.ndarray) -> Start:
        """Return what a state vector (S,) stands for."""
        if self.body.data.time < self._time_s:
            self._known.clear()
        self._time_s = self.body.data.time
        return self._known.get(_key(observation)) \
            or self._note(observation, _start(self.body.model, self.body.data))

    def controls(self, actions: np.ndarray) -> np.ndarray:
        """Return what all actuators are told, shape (..., nu), by actions (..., A)."""
        controls = np.empty((*actions.shape[:-1], self.body.model.nu))
        controls[...] = self.body.data.ctrl  # some may be none of the spec's
        controls[..., self.body.actuators] = actions
        return controls

    def observe(self, full: np.ndarray, controls: np.ndarray,
                observation: np.ndarray) -> np.ndarray:
        """
        Return the state vectors that go with sequences of full states.

        Parameters
        ----------
        full : array, shape (P, H + 1, F)
            At the beginning, and after each control period.
        controls : array, shape (P, H, nu)
            During each.
        observation : array, shape (S,)
            State vector at the beginning.

        Returns
        -------
        array, shape (P, H, S)
            After each period.

        """
        before, after = (Moments(self.body.model, self._scratch, states, controls)
                         for states in (full[:, :-1], full[:, 1:]))
        return self._reader.read(before, after, observation)

    def _step(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        model, data, start = self.body.model, self._scratch, self.start(observation)
        mujoco.mj_setState(model, data, start.full, FULL_STATE)
        data.qacc_warmstart[:] = start.warmstart
        data.ctrl[:] = controls = self.controls(action)
        mujoco.mj_step(model, data, self.body.num_substeps)
        if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            return np.full(len(observation), np.nan)
        reached = _start(model, data)  # now: reading uses the same data
        full = np.stack([start.full, reached.full])
        state = self.observe(full[None], controls[None, None], observation)[0, 0]
        self._note(state, reached)
        return state

    def _note(self, observation: np.ndarray, start: Start) -> Start:
        self._known[_key(observation)] = start
        if len(self._known) > NUM_REMEMBERED:
            self._known.popitem(last=False)
        return start


def _start(model: mujoco.MjModel, data: mujoco.MjData) -> Start:
    full = np.empty(mujoco.mj_stateSize(model, FULL_STATE))
    mujoco.mj_getState(model, data, full, FULL_STATE)
    return Start(full, data.qacc_warmstart.copy())


def _key(observation: np.ndarray) -> bytes:
    return np.asarray(observation, float).tobytes()
