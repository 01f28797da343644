"""Costs of action sequences under the learned model: the one seam between planner and model."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
import time

import numpy as np

from mbrl_ros import core
from mbrl_ros import costs as cost_terms
from mbrl_ros.core import plugins
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime import companions, providers
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.cache import cached, is_cached
from mbrl_ros.runtime.derivatives import Derivatives, Expansion, Gradients
from mbrl_ros.runtime.providers import Form
from mbrl_ros.runtime.rollout_config import RolloutConfig

# Tiles smaller than this are never worth the nodes they run.
SMALLEST_TILE = 8
CALIBRATION_RUNS, CALIBRATION_S = 5, 2.0
ABOUT_AS_FAST = 1.1


@dataclass(frozen=True)
class Draw:
    """
    What all candidates of one plan share.

    Random numbers, and goal (G,), weights (T,) and the number of steps that count, as they were
    when the plan began: what changes meanwhile must not split one ranking in two.

    Attributes
    ----------
    noise : array, shape (H, K, S)
        Standard normal; with moment matching two of them, (H, 2, K, S), the second to draw from
        what was fitted; with mean propagation none, (H, 0, S).
    permutation : array, shape (H, K)
        With TS1: which particle each slot takes at a step; slot k belongs to member k // (K / E).
    goal, weights, horizon
        As above.

    """

    noise: np.ndarray
    permutation: np.ndarray
    goal: np.ndarray
    weights: np.ndarray
    horizon: int


@dataclass(frozen=True)
class Prediction:
    """
    What the model foresees for one action sequence.

    Attributes
    ----------
    cost : float
        What planners minimise: by default the weighted sum of `terms`, else by risk and doubt.
    terms : array, shape (T,)
        Each term, without its weight: the mean over the particles, of the steps that count.
    states : array, shape (H, K, S)
        Predicted states of the particles after each step.
    lengths : array, shape (K,), or None
        Steps of each particle that count; None if none ends early.
    disagreement : array, shape (H,), or None
        Of the members about each step, the mean over the particles that are still going, NaN where
        none is, in units of the model's own 99th percentile; None if doubt is off.

    """

    cost: float
    terms: np.ndarray
    states: np.ndarray
    lengths: np.ndarray | None = None
    disagreement: np.ndarray | None = None


class Rollout:
    """
    The compiled rollout of a model and a task.

    Parameters
    ----------
    artifact, robot, task
        Verified model and what it is for.
    config : RolloutConfig
        How candidates are rolled out.
    provider : str
        What runs the graph: the name of a file in runtime/providers; refused where it is missing.
    precision : str
        One of the provider's, or '' for its default.
    threads : int
        Tiles that run at once; 0: as many as the provider can.

    Attributes
    ----------
    provider, precision : str
        What runs, and in which precision.
    num_tiles : int
        Tiles a population is cut into, at most.
    was_cached : bool
        True if the graph came from the cache.
    model_hash : str
        SHA-256 of the model.
    model_path : Path
        Where the model was read.

    """

    def __init__(self, artifact: Artifact, robot: RobotSpec, task: TaskSpec,
                 config: RolloutConfig, provider: str = 'cpu', precision: str = '',
                 threads: int = 0) -> None:
        module, self.precision = providers.find(provider, precision)
        self.provider = provider
        self.horizon, self.config = task.horizon, config
        self.model_hash, self.model_path = artifact.hash, artifact.path
        self._num_state = len(robot.observation)
        self._policy = None if not config.policy else _open_policy(artifact, robot, task, config)
        graph, self.was_cached = _graph(artifact, robot, task, config,
                                        module.form(self.precision))
        self._session = module.open_session(graph, self.precision)
        self._derivatives = Derivatives(
            artifact, robot, task, config,
            lambda: _ingredients(artifact, robot, task, config, module.form(self.precision)))
        self._threads = threads or module.num_parallel()
        self.num_tiles = self._threads
        # The calling thread runs tiles too.
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1), 'rollout')
        self._has_ends = config.max_disagreement > 0.0 or bool(
            task.termination and task.termination_cost is not None)
        self._goal = task.goal_values.astype(np.float32)
        self._weights = task.weights.astype(np.float32)

    def set_goal(self, goal: np.ndarray) -> None:
        """Plan towards another goal, shape (G,), from the next call on."""
        if np.shape(goal) != self._goal.shape:
            raise ValueError(f'goal of shape {np.shape(goal)}; the task has {len(self._goal)} '
                             'number(s)')
        self._goal = np.asarray(goal, np.float32)

    @property
    def goal(self) -> np.ndarray:
        """Goal (G,) of the next plan, float32."""
        return self._goal

    @property
    def weights(self) -> np.ndarray:
        """Weights (T,) of the next plan, float32."""
        return self._weights

    def set_weights(self, weights: np.ndarray) -> None:
        """Weigh the cost terms anew, shape (T,), from the next call on."""
        if np.shape(weights) != self._weights.shape:
            raise ValueError(f'weights of shape {np.shape(weights)}; the task has '
                             f'{len(self._weights)} cost term(s)')
        self._weights = np.asarray(weights, np.float32)

    def draw(self, rng: np.random.Generator) -> Draw:
        """Draw the random numbers of one plan, and take down its goal and weights."""
        shape = (self.horizon, *self.config.noise_shape, self._num_state)
        noise = rng.standard_normal(shape, dtype=np.float32)
        order = np.empty((self.horizon, 0), np.int64)
        if self.config.propagation == 'ts1':
            particles = np.arange(self.config.particles)
            order = rng.permuted(np.tile(particles, (self.horizon, 1)), axis=1)
        return Draw(noise, order, self._goal, self._weights, self.horizon)

    def costs(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> np.ndarray:
        """
        Evaluate candidates.

        Parameters
        ----------
        state : array, shape (S,)
            Where they start.
        actions : array, shape (P, H, A)
            Candidates.
        draw : Draw
            Random numbers of this plan.

        Returns
        -------
        array, shape (P,)
            Cost of each; not finite where the model diverged.

        """
        candidates = actions.astype(np.float32)
        count = min(self.num_tiles, max(1, len(candidates) // SMALLEST_TILE))
        edges = [len(candidates) * i // count for i in range(count + 1)]
        tiles = [candidates[start:end] for start, end in pairwise(edges)]
        mine, others = tiles[::self._threads], [
            self._pool.submit(self._run_tiles, state, tiles[first::self._threads], draw)
            for first in range(1, min(self._threads, len(tiles)))]
        found: list[np.ndarray] = [np.empty(0)] * len(tiles)
        try:
            found[::self._threads] = self._run_tiles(state, mine, draw)
        finally:
            wait(others)  # after an error too: the next plan must find the threads free
        for first, future in enumerate(others, start=1):
            found[first::self._threads] = future.result()
        return np.concatenate(found)

    def calibrate(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> dict[int, float]:
        """
        Choose the number of tiles that is fast here; takes a few dozen runs, or two seconds.

        A tile that fits the caches runs faster, but each tile pays for all nodes of the graph
        once. Fewer tiles, of which one alone keeps a single core busy, are taken where they are
        about as fast as the fastest: what else has to run meanwhile finds a core. The last bits of
        the costs depend on the tiles: a run that must be repeatable, bit for bit, is not
        calibrated. What runs one tile at a time is given the whole population.

        Returns
        -------
        dict
            Fastest time [s] of each number of tiles that was tried.

        """
        most = len(actions) // SMALLEST_TILE if self._threads > 1 else 1
        times: dict[int, float] = {}
        count, end = 1, time.perf_counter() + CALIBRATION_S
        while not times or (count <= most and time.perf_counter() < end):
            self.num_tiles = count
            spent = []
            for _ in range(CALIBRATION_RUNS):
                began = time.perf_counter()
                self.costs(state, actions, draw)
                spent.append(time.perf_counter() - began)
            times[count] = min(spent)
            count *= 2
        enough_s = ABOUT_AS_FAST * min(times.values())
        self.num_tiles = min(count for count, spent_s in times.items() if spent_s <= enough_s)
        return times

    def predict(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> Prediction:
        """Return what the model foresees for one sequence, shape (H, A)."""
        names = ['cost', 'terms', 'states', *(['lengths'] if self._has_ends else []),
                 *(['disagreement'] if self.config.has_doubt else [])]
        found = dict(zip(names, self._run(names, state, actions[None].astype(np.float32), draw),
                         strict=True))
        lengths = found['lengths'][:, 0] if self._has_ends else None
        disagreement = None
        if self.config.has_doubt:
            disagreement = _mean_of_going(found['disagreement'][:, :, 0], lengths)
        return Prediction(float(found['cost'][0]), found['terms'][0], found['states'][:, :, 0],
                          lengths, disagreement)

    def proposals(self, state: np.ndarray, draw: Draw) -> np.ndarray | None:
        """
        Return what the policy would do from a state, shape (E, H, A); None without a policy.

        It is rolled out under the mean of each member, inside the robot's limits.
        """
        if self._policy is None:
            return None
        found, = self._policy.run(['actions'],
                                  {'state': state.astype(np.float32), 'goal': draw.goal})
        return found

    def gradients(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> Gradients:
        """Return what `costs` returns, and its derivatives by the actions; on the CPU."""
        return self._derivatives.gradients(self._feeds(state, actions.astype(np.float32), draw))

    def expansion(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> Expansion:
        """Return costs under the mean of the members, and the model around the cheapest."""
        return self._derivatives.expansion(state, actions, draw.goal, draw.weights, draw.horizon)

    def _run_tiles(self, state: np.ndarray, tiles: Sequence[np.ndarray],
                   draw: Draw) -> list[np.ndarray]:
        return [self._run(['cost'], state, tile, draw)[0] for tile in tiles]

    def _run(self, outputs: list[str], state: np.ndarray, actions: np.ndarray,
             draw: Draw) -> list[np.ndarray]:
        return self._session.run(outputs, self._feeds(state, actions, draw))

    def _feeds(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> dict[str, np.ndarray]:
        feeds = {'state': state.astype(np.float32), 'actions': actions, 'goal': draw.goal,
                 'weights': draw.weights}
        if self.config.propagation != 'mean':
            feeds['noise'] = draw.noise
        if self.config.propagation == 'ts1':
            feeds['permutation'] = draw.permutation
            feeds['inverse'] = np.argsort(draw.permutation, axis=1)
        if self.config.adaptive_horizon:
            feeds['horizon'] = np.array([draw.horizon])
        elif draw.horizon != self.horizon:
            raise ValueError(f'{draw.horizon} of {self.horizon} steps are to count, and the graph '
                             'counts all: set adaptive_horizon')
        return feeds

    def close(self) -> None:
        """Stop the tile threads."""
        self._pool.shutdown()


def _mean_of_going(values: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Return the mean (H,) of values (H, K) over the particles that are still going."""
    if lengths is None:
        return np.asarray(values.mean(axis=1))
    going = np.arange(len(values))[:, None] < lengths
    total, count = np.where(going, values, 0.0).sum(axis=1), going.sum(axis=1)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def is_compiled(artifact: Artifact, robot: RobotSpec, task: TaskSpec, config: RolloutConfig,
                provider: str, precision: str) -> bool:
    """Return whether a rollout of these would find its graph in the cache."""
    module, precision = providers.find(provider, precision)
    return is_cached(_ingredients(artifact, robot, task, config, module.form(precision)))


def _graph(artifact: Artifact, robot: RobotSpec, task: TaskSpec, config: RolloutConfig,
           form: Form) -> tuple[bytes, bool]:
    """Return the serialised rollout graph, and whether it was compiled before."""
    def make() -> bytes:
        # Here, because the libraries it takes load slower than a compiled graph does.
        from mbrl_ros.runtime.compile import compile_rollout  # noqa: PLC0415

        model = compile_rollout(artifact, robot, task, config, form)
        content: bytes = model.SerializeToString(deterministic=True)
        return content
    return cached(_ingredients(artifact, robot, task, config, form), make)


def _open_policy(artifact: Artifact, robot: RobotSpec, task: TaskSpec,
                 config: RolloutConfig) -> providers.Session:
    """Open the graph of the proposals; on the CPU: it is one candidate a member."""
    cpu = providers.load('cpu')
    form = cpu.form('')

    def make() -> bytes:
        from mbrl_ros.runtime.compile import compile_proposals  # noqa: PLC0415

        model = compile_proposals(artifact, robot, task, config.policy, form)
        content: bytes = model.SerializeToString(deterministic=True)
        return content
    parts = [b'proposals', *_ingredients(artifact, robot, task, config, form)]
    return cpu.open_session(cached(parts, make)[0], '')


def _ingredients(artifact: Artifact, robot: RobotSpec, task: TaskSpec, config: RolloutConfig,
                 form: Form) -> list[bytes]:
    """Return everything that the graph is made from."""
    # The terms' folders as a whole: a term of the user's own may import its neighbours.
    modules = [cost_terms, core, *(plugins.find(cost_terms, term.term) for term in task.cost)]
    code = [file for module in modules if module.__file__
            for file in Path(module.__file__).parent.glob('*.py')]
    code += Path(__file__).parent.rglob('*.py')  # autodiff and providers too
    settings = repr((config, form, artifact.metadata['step_std'], artifact.spread_unit,
                     [version(name) for name in ('ndonnx', 'onnx', 'spox')]))
    return [artifact.model.SerializeToString(deterministic=True),
            robot.model_dump_json().encode(), task.model_dump_json().encode(), settings.encode(),
            *(companions.read(path) for path in (config.value, config.policy) if path),
            *(sha256(path.read_bytes()).digest() for path in sorted(set(code)))]
