"""How candidates are rolled out: settings of the compiled graph, as parameters `rollout.*`."""

from typing import Literal

from pydantic import Field

from mbrl_ros.core.yaml_file import Strict

Propagation = Literal['ts_infinity', 'ts1']


class RolloutConfig(Strict):
    """How candidates are rolled out."""

    particles: int = Field(5, ge=1, le=1000,
                           description='Particles a candidate; a multiple of the members')
    propagation: Propagation = Field(
        'ts_infinity', description='Trajectory sampling: a particle keeps or changes its member')
