"""Training settings, read from config/training/<name>.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from mbrl_ros.core.yaml_file import Strict

Activation = Literal['silu', 'tanh', 'relu', 'leaky_relu']
Precision = Literal['float32', 'bf16']


class TrainingConfig(Strict):
    """Network and optimiser of the ensemble; the shipped YAML gives each value's source."""

    probabilistic: bool = Field(default=True,
                                description='Learn the std; else one constant a field')
    members: int = Field(5, ge=1, le=20, description='Networks in the ensemble')
    hidden_units: tuple[int, ...] = Field((128, 128, 128), min_length=1)
    activation: Activation = Field('silu', description='After each hidden layer')
    reward_head: bool = Field(default=False, description='Learn the reward that the spec names')
    termination_head: bool = Field(default=False, description='Learn when episodes end, likewise')
    reward_weight: float = Field(default=1.0, gt=0,
                                 description='In the loss; a field of the state has 1')
    termination_weight: float = Field(default=1.0, gt=0)
    loss_steps: int = Field(default=1, ge=1, le=100,
                            description='Steps that the loss predicts in a row')
    precision: Precision = Field(default='float32', description='Of the products while training')
    learning_rate: float = Field(1e-3, gt=0)
    cycle_steps: int | None = Field(
        default=None, ge=1,
        description='Gradient steps in which the learning rate rises and falls; none: it stays')
    adam_betas: tuple[float, float] = Field(default=(0.9, 0.999),
                                            description='Decay of its two moments')
    weight_decay: tuple[float, ...] = Field((1e-4, 2.5e-4, 2.5e-4, 5e-4))
    logvar_bounds: tuple[float, float] = Field((-10.0, 0.5), description='Soft bounds at start')
    logvar_bound_weight: float = Field(0.01, ge=0)
    averaging: float = Field(
        default=0.0, ge=0, lt=1,
        description='Share of the steps so far that weights are averaged over; 0: they are not')
    batch_size: int = Field(64, ge=1)
    max_epochs: int = Field(400, ge=1)
    min_steps: int = Field(1000, ge=0, description='Gradient steps before stopping early')
    patience_steps: int = Field(600, ge=1, description='Gradient steps without a better score')
    holdout_fraction: float = Field(0.15, gt=0, lt=0.5)
    improvement: float = Field(1e-3, ge=0, description='Smallest drop of the holdout loss')
    chosen_by: Literal['likelihood', 'last'] = Field(
        default='likelihood', description='Weights that a member ends with: the likeliest of all '
                                          'epochs on the holdout, or the last ones')
    variance_exponent: float = Field(
        default=0.0, ge=0.0, le=1.0,
        description='The loss of a field is weighed by its variance to this power')

    @model_validator(mode='after')
    def _check_lengths(self) -> 'TrainingConfig':
        layers = len(self.hidden_units) + 1
        if len(self.weight_decay) != layers:
            raise ValueError(f'weight_decay needs one value a layer: {layers}, '
                             f'not {len(self.weight_decay)}')
        return self
