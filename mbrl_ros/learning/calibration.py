"""What is usual for a model: its signals of surprise on held-out episodes."""

from collections.abc import Sequence

import numpy as np

from mbrl_ros.runtime import surprise
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.surprise import Calibration, Scale, SIGNALS


def calibrate(dynamics: Dynamics, episodes: Sequence[tuple[np.ndarray, np.ndarray]],
              source: str, seed: int) -> Calibration:
    """
    Find the distribution of each signal, and of the largest of them, on held-out episodes.

    Parameters
    ----------
    dynamics : Dynamics
        The exported model: what is scored is what will drive.
    episodes : sequence of (states (T+1, S), actions (T, A))
        Held-out data.
    source : str
        What they are, for the card.
    seed : int
        Of the particles.

    Notes
    -----
    The actions that were really taken stand for the plans. Moments of one episode are no
    independent draws: a window of k steps shares k - 1 of them with the next. 25 held-out blocks
    of 25 steps tell less about the tail than 625 single transitions would.

    """
    generator = np.random.default_rng(seed)
    # Two windows fit into the longest episode: what led to a moment, and the plan from there.
    steps = min(surprise.MOST_STEPS, (max(len(actions) for _, actions in episodes) + 1) // 2)
    found: dict[str, list[np.ndarray]] = {name: [] for name in SIGNALS}
    moments: list[tuple[float, ...]] = []
    for states, actions in episodes:
        one = errors(dynamics, states, actions, 1)
        many = errors(dynamics, states, actions, steps)
        spread = spreads(dynamics, states, actions, steps, generator)
        for name, values in zip(SIGNALS, (one, many, spread), strict=True):
            found[name].append(values)
        # Both errors of an observation, and the plan made one tick before it.
        moments += zip(one[steps - 1:], many, spread[steps - 1:], strict=False)
    scales = {name: Scale.fit(np.concatenate(values)) for name, values in found.items()}
    largest = [surprise.odds({name: scales[name].share_below(float(value))
                              for name, value in zip(SIGNALS, moment, strict=True)})
               for moment in moments]
    scales['together'] = Scale.fit(np.array(largest))
    return Calibration(steps, scales, sum(len(values) for values in found['one_step']), source)


def errors(dynamics: Dynamics, states: np.ndarray, actions: np.ndarray,
           steps: int) -> np.ndarray:
    """Return the open-loop error after `steps` steps from each state that has so many left."""
    count = max(0, len(actions) - steps + 1)
    if not count:
        return np.empty(0)
    current = np.broadcast_to(states[:count], (dynamics.members, *states[:count].shape))
    variance = np.zeros(states[:count].shape)
    for step in range(steps):
        current, std = dynamics(current, actions[step:step + count])
        variance += (std * std).mean(axis=0)
    return surprise.error(current.astype(float), variance, states[steps:], dynamics.step_std)


def spreads(dynamics: Dynamics, states: np.ndarray, actions: np.ndarray, steps: int,
            generator: np.random.Generator) -> np.ndarray:
    """Return the spread of one particle a member along the next actions, from each state."""
    count = max(0, len(actions) - steps + 1)
    if not count:
        return np.empty(0)
    current = np.broadcast_to(states[:count], (dynamics.members, *states[:count].shape))
    path = []
    for step in range(steps):
        mean, std = dynamics(current, actions[step:step + count])
        current = mean + std * generator.standard_normal(mean.shape, dtype=np.float32)
        path.append(current)
    return surprise.plan_spread(np.stack(path), dynamics.step_std)
