"""Parameters of the controller node."""

from typing import Literal

from pydantic import Field

from mbrl_ros.nodes.lifecycle import NodeParams


class ControllerParams(NodeParams):
    """Parameters of the controller, beside its sections: rollout, planner or signal, fallback."""

    task: str = Field('cartpole_swingup', description='Task spec: a shipped name or a .yaml path')
    mode: Literal['drive', 'collect'] = Field(
        'drive', description='drive: plan with the model; collect: send an exploration signal')
    model: str = Field('', description='A dynamics.onnx, a folder holding one, or a shipped name; '
                                       'empty: the model shipped for the robot. May be set at any '
                                       'time: configure and ~/reload_model read it')
    signal: str = Field('uniform', description='Exploration signal of the collect mode')
    planner: str = Field('', description='Planner: a name in config/planners or a .yaml path; '
                                         'empty: that of the task')
    provider: str = Field('cpu', description='What runs the model: cpu, cuda or openvino; refused '
                                             'at configure where it is missing')
    precision: str = Field('', description='Of the provider, such as tf32 or bf16; empty: its '
                                           'default')
    lockstep: bool = Field(False, description='Answer every observation with exactly one command, '
                                              'however long the plan takes')
    actuation_delay_steps: int = Field(
        -1, ge=-1, le=20,
        description='Control periods from an observation to the moment its command acts; the '
                    'state is carried forward through them. -1: one, in lock-step none, and those '
                    'of the robot spec')
    deadline: float = Field(0.8, gt=0.0, le=1.0,
                            description='Share of the control period a tick waits for its plan')
    allow_slow: bool = Field(False, description='Activate even if the 99th percentile of the time '
                                                'of a plan, measured at configure, exceeds the '
                                                'control period')
    chunk_steps: int = Field(
        1, ge=1, le=200,
        description='Actions of a plan that are acted upon. 1: each tick plans for itself. k: the '
                    'next plan is made during them, from where they will lead, and has k control '
                    'periods')
    open_loop: bool = Field(
        False, description='For study: plans see the first observation after activation, and then '
                           'what the model makes of it; the safety gate sees all')
    max_spread: float = Field(
        20.0, ge=1.0, le=1e6,
        description="Trust limit: the members' disagreement as a multiple of the held-out data's "
                    '99th percentile')
    seed: int = Field(0, ge=0, description='Seed of every random number')
    frame: str = Field('world', description='TF frame of ~/plan_markers')

    @property
    def plan_periods(self) -> float:
        """Control periods that a plan may take where commands cannot wait."""
        return self.deadline if self.chunk_steps == 1 else self.chunk_steps
