"""
Charges: what candidates cost, given what is foreseen for their particles.

Where nothing ends a particle or the horizon, all steps count and a candidate costs what its terms
come to. Otherwise `counted` says which steps of which particles count. Steps that do not are left
out by a choice, not by a product: what a particle does after its end may be infinite.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ndonnx as ndx
import numpy as np
import onnx
from spox import inline, Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction
from mbrl_ros.runtime.graph import ints, number
from mbrl_ros.runtime.risk import RISKS
from mbrl_ros.runtime.rollout_config import RolloutConfig


@dataclass(frozen=True)
class Charges:
    """
    What candidates are charged for.

    Attributes
    ----------
    robot, task : RobotSpec, TaskSpec
        Names, cost terms, termination.
    config : RolloutConfig
        Risk, the price and the limit of doubt, the horizon.
    function : CostFunction
        The cost terms.
    value : ModelProto or None
        Cost-to-go; see `companions`.

    Notes
    -----
    A particle ends after the step in which the members disagree by more than `max_disagreement`
    about the next state, or which leads out of the task's termination bounds where the task has a
    `termination_cost`. That step still counts, the later ones of the horizon cost `doubt_cost` or
    `termination_cost` each, whatever came first. With moment matching a particle is not the same
    from one step to the next, so there its place ends. The cost-to-go is that of the last state
    that counts, of ended particles too: ending must not save it. Sources: Kidambi et al. 2020
    (MOReL), arXiv:2005.05951, for the end in doubt and its cost; Yu et al. 2020 (MOPO),
    arXiv:2005.13239, for the price of uncertainty.

    """

    robot: RobotSpec
    task: TaskSpec
    config: RolloutConfig
    function: CostFunction
    value: onnx.ModelProto | None

    def charge(self, foreseen: Mapping[str, Var], by_step: Var,
               inputs: Mapping[str, Var]) -> dict[str, Var]:
        """
        Add up what candidates cost.

        Parameters
        ----------
        foreseen : mapping
            `states` (H, K, P, S), and as far as they are wanted `disagreement` and heads
            (H, K, P).
        by_step : Var, shape (H, P, A)
            Candidates.
        inputs : mapping
            `goal` (G), `weights` (T) and, if the horizon is adaptive, `horizon` (1).

        Returns
        -------
        dict
            `cost` (P); `terms` (P, T), each without its weight, the mean over the particles; if
            particles end, `lengths` (K, P), the steps of each that count.

        """
        states = foreseen['states']
        hit, price = self._hits(foreseen)
        within = self._within(inputs)
        counted, charges = _follow(hit, price, within)
        columns = [_only(term, counted)
                   for term in self._terms(foreseen, by_step, inputs['goal'])]
        terms = op.concat([op.unsqueeze(op.reduce_sum(
            op.reduce_mean(column, ints(1), keepdims=0), ints(0), keepdims=0), ints(1))
            for column in columns], axis=1)
        # Zero, or NaN where any state is not finite: a term that saturates, or that does not look
        # at that state, must not let a diverged candidate through.
        zeros = op.mul(states, number(0.0))
        if counted is not None:
            zeros = _only(zeros, op.unsqueeze(counted, ints(3)))
        diverged = op.reduce_sum(zeros, ints(0, 1, 3), keepdims=0)
        lengths = None if counted is None else _sum(_only(number(1.0), counted))
        further = [] if charges is None else [_sum(charges)]
        if self.config.disagreement_weight:
            price_of_step = op.mul(foreseen['disagreement'],
                                   number(self.config.disagreement_weight))
            further.append(_sum(_only(price_of_step, counted)))
        if self.value is not None:
            further.append(self._cost_to_go(states, lengths, inputs['goal']))
        if further or self.config.risk != 'mean':
            cost = self._total(columns, inputs['weights'], further)
        else:
            # A sum, not a matrix product: some runtimes do those in bf16 or tf32.
            cost = op.reduce_sum(op.mul(terms, inputs['weights']), ints(1), keepdims=0)
        found = {'cost': op.add(cost, diverged), 'terms': terms}
        return found if hit is None or lengths is None else found | {'lengths': lengths}

    def _terms(self, foreseen: Mapping[str, Var], by_step: Var, goal: Var) -> list[Var]:
        """Return the terms of every step, each (H, K, P), or (H, 1, P) if of actions alone."""
        heads = {name: ndx.asarray(foreseen[name]) for name in self.function.heads}
        terms = self.function.terms(ndx.asarray(foreseen['states']),
                                    ndx.asarray(op.unsqueeze(by_step, ints(1))),
                                    ndx.asarray(goal), heads)
        return [term.unwrap_spox() for term in terms]

    def _total(self, columns: list[Var], weights: Var, further: list[Var]) -> Var:
        """Return what the particles' total costs come to, (P)."""
        totals = [op.mul(_sum(column), op.gather(weights, ints(index), axis=0))
                  for index, column in enumerate(columns)]
        # Some terms know of no particles, and others may not be there.
        full = op.const(np.zeros((self.config.num_particles, 1), np.float32))
        particles = full
        for part in (*totals, *further):
            particles = op.add(particles, part)
        cost = RISKS[self.config.risk](particles, self.config)
        # A highest value need not be NaN where one of the values is; a sum is.
        return op.add(cost, op.reduce_sum(op.mul(particles, number(0.0)), ints(0), keepdims=0))

    def _hits(self, foreseen: Mapping[str, Var]) -> tuple[Var | None, Var | None]:
        """Return where particles end, (H, K, P), and what each step costs from then on."""
        config, ends = self.config, list[tuple[Var, float]]()
        if self.task.termination_cost is not None and self.task.termination:
            inside = _all([part for name, bounds in self.task.termination.items()
                           for part in self._sides(foreseen['states'], name, bounds.min,
                                                   bounds.max)])
            ends.append((op.not_(inside), self.task.termination_cost))
        if config.max_disagreement:
            # Not "greater": what is no number ends too.
            trusted = op.less_or_equal(foreseen['disagreement'], number(config.max_disagreement))
            ends.append((op.not_(trusted), config.doubt_cost))
        if not ends:
            return None, None
        hit, price = ends[0][0], number(ends[0][1])
        for other, cost in ends[1:]:
            hit, price = op.or_(hit, other), op.where(other, number(cost), price)
        return hit, price

    def _sides(self, states: Var, name: str, low: float, high: float) -> list[Var]:
        index = self.robot.state_names.index(name)
        field = op.gather(states, op.const(np.int64(index)), axis=3)
        return [op.greater_or_equal(field, number(low)), op.less_or_equal(field, number(high))]

    def _within(self, inputs: Mapping[str, Var]) -> Var | None:
        """Return which steps the horizon reaches, (H, 1, 1)."""
        if not self.config.adaptive_horizon:
            return None
        steps = op.const(np.arange(self.task.horizon).reshape(-1, 1, 1))
        return op.less(steps, inputs['horizon'])

    def _cost_to_go(self, states: Var, lengths: Var | None, goal: Var) -> Var:
        """Return the value of the last states that count, (K, P)."""
        assert self.value is not None
        if lengths is None:
            last = op.gather(states, op.const(np.int64(self.task.horizon - 1)), axis=0)
        else:
            steps = np.arange(1, self.task.horizon + 1, dtype=np.float32).reshape(-1, 1, 1)
            is_last = op.equal(op.const(steps), lengths)
            last = _sum(_only(states, op.unsqueeze(is_last, ints(3))))
        given = {'state': op.reshape(last, ints(-1, len(self.robot.observation))), 'goal': goal}
        wanted = {each.name: given[each.name] for each in self.value.graph.input}
        return op.reshape(inline(self.value)(**wanted)['cost_to_go'],
                          ints(self.config.num_particles, -1))


def _follow(hit: Var | None, price: Var | None,
            within: Var | None) -> tuple[Var | None, Var | None]:
    """Return which steps count, (H, K, P) or (H, 1, 1), and what others are charged, (H, K, P)."""
    if hit is None or price is None:
        return within, None
    ended = _before(op.where(hit, number(1.0), number(0.0)))
    going = op.less(ended, number(0.5))
    first = op.where(op.and_(hit, going), price, number(0.0))
    charges = _before(first)
    if within is None:
        return going, charges
    return op.and_(going, within), op.where(within, charges, number(0.0))


def _before(value: Var) -> Var:
    """Return the sum over all earlier steps."""
    return op.cumsum(value, op.const(np.int64(0)), exclusive=1)


def _only(value: Var, chosen: Var | None) -> Var:
    """Return the value where it is chosen, else 0."""
    return value if chosen is None else op.where(chosen, value, number(0.0))


def _sum(value: Var) -> Var:
    """Return the sum over all steps."""
    return op.reduce_sum(value, ints(0), keepdims=0)


def _all(conditions: list[Var]) -> Var:
    found = conditions[0]
    for condition in conditions[1:]:
        found = op.and_(found, condition)
    return found
