"""
Risk: what the costs of a candidate's particles come to; one small function each.

A function takes the particles' costs (K, P), K known, and gives (P). ONNX operators, not the array
API: ndonnx sorts with shape arithmetic and averages in float64.
"""

from collections.abc import Callable
import math

from spox import Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.runtime.graph import ints, number, root
from mbrl_ros.runtime.rollout_config import Risk, RolloutConfig


def mean(costs: Var, config: RolloutConfig) -> Var:
    """Return the mean over the particles."""
    return op.reduce_mean(costs, ints(0), keepdims=0)


def worst(costs: Var, config: RolloutConfig) -> Var:
    """Return the highest cost of a particle."""
    return op.reduce_max(costs, ints(0), keepdims=0)


def cvar(costs: Var, config: RolloutConfig) -> Var:
    """
    Return the conditional value at risk: the mean of the worst `risk_level` of the particles.

    Their number is rounded up: one at least. Source: Rockafellar and Uryasev 2000.
    """
    # Less a little, for a share like 0.2 of 5, which float numbers make more than 1.
    count = math.ceil(config.risk_level * config.num_particles - 1e-9)
    highest, _ = op.top_k(costs, ints(count), axis=0)
    return op.reduce_mean(highest, ints(0), keepdims=0)


def mean_std(costs: Var, config: RolloutConfig) -> Var:
    """Return the mean plus `risk_weight` times the (population) std over the particles."""
    middle = op.reduce_mean(costs, ints(0), keepdims=1)
    apart = op.sub(costs, middle)
    std = root(op.reduce_mean(op.mul(apart, apart), ints(0), keepdims=0))
    return op.add(op.squeeze(middle, ints(0)), op.mul(std, number(config.risk_weight)))


RISKS: dict[Risk, Callable[[Var, RolloutConfig], Var]] = {
    'mean': mean, 'worst': worst, 'cvar': cvar, 'mean_std': mean_std}
