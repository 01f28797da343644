"""
The four tasks of PETS: what others reached on them, and what `mbrl-ros bench pets` asks for.

Returns are max-so-far, the best of all trials up to that one, as PETS plots them. Trials count
from 1, the first one driven by a model: the random episode before it has no number. No source
publishes a table by trial: a curve 'read off a plot' is that of one run, known to about 3.
"""

from dataclasses import dataclass

# Both from the plots of quanvuong/handful-of-trials-pytorch, the port.
ORIGINAL = 'PETS, original code (one run, read off a plot)'
PORT = 'PETS, PyTorch port (one run, read off a plot)'
# WilsonWangTHU/POPLIN, img/table.png, after 50,000 steps: the mean over the last 3,000, so no
# max-so-far, and propagating the mean, not particles. Not comparable with the others.
POPLIN = 'PETS as run for POPLIN (mean of 4 seeds)'
QUOTED = 'PETS, original code (as its port quotes it)'

# What --task names: robot spec, task spec and training, all below config/.
TASKS = {
    'cartpole': ('cartpole', 'cartpole_swingup', 'default'),
    'reacher': ('arm', 'arm_reach', 'default'),
    'pusher': ('pusher', 'pusher_push', 'contact'),
    'half_cheetah': ('half_cheetah', 'half_cheetah_run', 'gait'),
}

# By task, by source: (trial, return), in the order of trials.
CURVES: dict[str, dict[str, tuple[tuple[int, float], ...]]] = {
    'cartpole': {
        ORIGINAL: ((3, 53.0), (5, 129.0), (6, 168.0), (9, 177.0), (15, 180.0)),
        PORT: ((4, 163.0), (9, 181.0)),
    },
    'reacher': {
        ORIGINAL: ((5, -146.0), (8, -78.0), (20, -49.0), (40, -40.0), (100, -38.0)),
        PORT: ((8, -44.0), (30, -36.0), (100, -34.0)),
        # Episodes of 150 steps: 50,000 steps are trial 333.
        POPLIN: ((333, -47.7),),
    },
    'pusher': {
        ORIGINAL: ((5, -158.0), (10, -124.0), (20, -79.0), (100, -67.0)),
        PORT: ((10, -109.0), (20, -81.0), (100, -70.0)),
        POPLIN: ((333, -52.7),),
    },
    'half_cheetah': {
        # Episodes of 1,000 steps.
        POPLIN: ((50, 4204.5),),
        QUOTED: ((300, 15000.0),),
    },
}


@dataclass(frozen=True)
class Gate:
    """
    A return that the mean over seeds of max-so-far must reach at a trial.

    A stretch is reported beside the gates, and missing it is no failure.
    """

    trial: int
    threshold: float
    is_stretch: bool = False

    @property
    def name(self) -> str:
        """Name in the report, such as 'trial_5'."""
        return f'trial_{self.trial}{"_stretch" if self.is_stretch else ""}'


GATES: dict[str, tuple[Gate, ...]] = {
    'cartpole': (Gate(4, 170.0, is_stretch=True), Gate(5, 150.0), Gate(8, 160.0), Gate(9, 175.0),
                 Gate(15, 175.0)),
    'reacher': (Gate(20, -60.0), Gate(50, -45.0), Gate(100, -45.0)),
    'pusher': (Gate(20, -85.0), Gate(100, -75.0)),
    'half_cheetah': (Gate(50, 4000.0), Gate(300, 10_000.0, is_stretch=True)),
}
