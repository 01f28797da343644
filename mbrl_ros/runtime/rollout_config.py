"""How candidates are rolled out: settings of the compiled graph, as parameters `rollout.*`."""

from typing import Literal

from pydantic import Field, model_validator

from mbrl_ros.core.yaml_file import Strict

Propagation = Literal['ts_infinity', 'ts1', 'mean', 'distribution_sampling', 'moment_matching']
Risk = Literal['mean', 'worst', 'cvar', 'mean_std']


class RolloutConfig(Strict):
    """
    How candidates are rolled out.

    Disagreement is the spread of the members' predictions in units of the model's own 99th
    percentile on held-out data: 1 is the most that the data it knows would make one expect.
    """

    particles: int = Field(5, ge=1, le=1000,
                           description='Particles a candidate; with trajectory sampling a '
                                       'multiple of the members, with `mean` one, whatever this '
                                       'says')
    propagation: Propagation = Field(
        'ts_infinity', description='How particles go on: one member each for good (ts_infinity) '
                                   'or for a step (ts1), or all members (mean, '
                                   'distribution_sampling, moment_matching)')
    risk: Risk = Field('mean', description='What the costs of the particles come to: their mean, '
                                           'the worst, the mean of the worst share (cvar), mean '
                                           'plus weighted std (mean_std)')
    risk_level: float = Field(0.2, gt=0.0, le=1.0,
                              description='Share of the particles that cvar looks at')
    risk_weight: float = Field(1.0, ge=0.0, le=1000.0,
                               description='Weight of the std in mean_std')
    disagreement_weight: float = Field(
        0.0, ge=0.0, description='Cost of a step per unit of disagreement; 0: none')
    max_disagreement: float = Field(
        0.0, ge=0.0, description='Disagreement beyond which a particle ends; 0: never')
    doubt_cost: float = Field(
        0.0, ge=0.0, description='Cost of each step that a particle which ended in doubt does not '
                                 'make; more than a step can cost')
    adaptive_horizon: bool = Field(
        False, description='Only count the steps up to where the members disagree about the last '
                           'plan, or where what they were wrong by lately adds up to too much')
    horizon_disagreement: float = Field(
        1.0, gt=0.0, description='Disagreement at which the adaptive horizon ends, and error in '
                                 'units of its own 99th percentile on held-out data')
    min_horizon: int = Field(5, ge=1, le=200,
                             description='Steps that the adaptive horizon counts at least')
    value: str = Field('', description='Path of a value.onnx, the cost-to-go that is added at the '
                                       'end of the horizon; empty: none')
    policy: str = Field('', description='Path of a policy.onnx, whose rollouts join the '
                                        'first candidates of a plan; empty: none')

    @model_validator(mode='after')
    def _check_doubt(self) -> 'RolloutConfig':
        if self.max_disagreement > 0.0 and self.doubt_cost == 0.0:
            raise ValueError('max_disagreement ends particles, and each step they do not make '
                             'must cost something, or ending would pay: set doubt_cost to more '
                             'than a step can cost')
        return self

    @property
    def num_particles(self) -> int:
        """Particles of a candidate, K."""
        return 1 if self.propagation == 'mean' else self.particles

    @property
    def is_sampled(self) -> bool:
        """Whether each particle goes on by one member: trajectory sampling."""
        return self.propagation in ('ts_infinity', 'ts1')

    @property
    def has_doubt(self) -> bool:
        """Whether the disagreement of the members has a price or a limit."""
        return self.disagreement_weight > 0.0 or self.max_disagreement > 0.0

    def evaluations(self, members: int) -> int:
        """Return the network evaluations of a candidate's step, of an ensemble of so many."""
        share = 1 if self.is_sampled and not self.has_doubt else members
        return self.num_particles * share

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of a step's noise without the state's axis."""
        if self.propagation == 'moment_matching':
            return 2, self.particles  # to draw the next state, and to draw from what was fitted
        return (0,) if self.propagation == 'mean' else (self.particles,)
