"""What a model should score: a line a gate, and whether it is met."""

from dataclasses import dataclass

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning.evaluation import Evaluation


@dataclass(frozen=True)
class Gate:
    """One gate: what was scored, the figure, and its limits; None where there is none."""

    name: str
    value: float | None
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the figure exists and is inside the limits."""
        return self.value is not None and (self.least is None or self.value >= self.least) \
            and (self.most is None or self.value <= self.most)

    @property
    def limits(self) -> str:
        """The limits in words."""
        if self.least is None or self.most is None:
            return f'at least {self.least:g}' if self.most is None else f'at most {self.most:g}'
        return f'{self.least:g} to {self.most:g}'


def gates(robot: RobotSpec, scores: Evaluation) -> list[Gate]:
    """
    Return the gates of a robot's model.

    Notes
    -----
    Where the robot can be simulated, R2 and likelihood are asked as of simulated data; else as of
    hardware. A field in a unit per second is a velocity, any other a position.

    """
    simulated = robot.simulation is not None
    rows = []
    for field in robot.observation:
        least = (0.95 if field.unit.endswith('/s') else 0.99) if simulated else 0.8
        rows.append(Gate(f'R2 of {field.name}', scores.r2[field.name], least=least))
    rows.append(Gate('NLL', scores.overall['nll'], most=0.0 if simulated else 0.42))
    rows.append(Gate('calibration error', scores.overall['calibration_error'], most=0.05))
    rows.append(Gate('share in the 95 % interval', scores.overall['coverage_95'], 0.9, 0.98))
    last = scores.k_step[-1]
    rows.append(Gate(f"{last['k']}-step error", last['error'], most=0.3))
    rows.append(Gate('Spearman of disagreement and error', scores.doubt['spearman'], least=0.5))
    rows.append(Gate('AUROC out of distribution', scores.doubt['auroc'], least=0.9))
    return rows
