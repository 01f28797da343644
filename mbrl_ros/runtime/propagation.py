"""
Propagation: how particles go through the members, step by step; nodes of the rollout graph.

Trajectory sampling gives each particle a member: a batch of E x (K / E) x P. All other schemes,
and doubt, which asks every member about every particle, take a batch of E x K x P: E times the
network evaluations of trajectory sampling for the same K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from spox import Var
import spox.opset.ai.onnx.v21 as op

from mbrl_ros.core.errors import SpecError
from mbrl_ros.runtime.graph import ints, root, row, Step, walk
from mbrl_ros.runtime.rollout_config import RolloutConfig


@dataclass(frozen=True)
class Propagation:
    """
    What decides how particles go on.

    Attributes
    ----------
    step : callable
        The dynamics, with the `heads` that are wanted.
    config : RolloutConfig
        Scheme and number of particles K.
    members, horizon, num_state, num_action : int
        E, H, S, A.
    heads : tuple of str
        What is wanted of the model beside the state.
    unit : array, shape (S,), or None
        Of the disagreement, in units of the fields; None if nobody asks for it.
    loop : bool
        The horizon as a Loop.

    Raises
    ------
    SpecError
        If trajectory sampling cannot share out the particles evenly among the members.

    Notes
    -----
    Source: Chua et al. 2018 (PETS), arXiv:1805.12114, section 5, and the authors' code for what
    the paper leaves open. `ts_infinity`: particle k is propagated by member k // (K / E). `ts1`:
    so is slot k, and slot k takes particle `permutation[h, k]` for step h. `mean`: one particle,
    to the mean of the members' means. `distribution_sampling`: every particle draws from a
    Gaussian with the mean and the variance of the mixture of all members. `moment_matching`: and
    then all particles of a candidate are drawn anew from a Gaussian, field by field, with their
    mean and their (population) std; so a particle has no past of its own there.

    """

    step: Step
    config: RolloutConfig
    members: int
    horizon: int
    num_state: int
    num_action: int
    heads: tuple[str, ...]
    unit: np.ndarray | None
    loop: bool

    def __post_init__(self) -> None:
        if self.config.is_sampled and self.config.particles % self.members:
            raise SpecError(f'particles: {self.config.particles} cannot be shared out among '
                            f'{self.members} members; allowed: multiples of {self.members}.')

    def foresee(self, inputs: Mapping[str, Var], by_step: Var, zero: Var) -> dict[str, Var]:
        """
        Roll all candidates out.

        Parameters
        ----------
        inputs : mapping
            `state` (S), and where the scheme wants them `noise` (H, K, S), two of them with
            moment matching (H, 2, K, S), `permutation` and its `inverse` (H, K).
        by_step : Var, shape (H, P, A)
            Candidates.
        zero : Var, shape (P, 1)
            Zeros.

        Returns
        -------
        dict
            `states` (H, K, P, S) after each step; `disagreement` about it and heads (H, K, P).

        """
        start = op.unsqueeze(op.add(inputs['state'], zero), ints(0))  # (1, P, S)
        foresee = self._one_member if self.config.is_sampled and self.unit is None \
            else self._all_members
        found = foresee(inputs, start, by_step, zero)
        particles = self.config.num_particles
        shapes = [(particles, -1, self.num_state), *[(particles, -1)] * (len(found) - 1)]
        names = ['states', *(() if self.unit is None else ('disagreement',)), *self.heads]
        return {name: op.reshape(value, ints(self.horizon, *shape))
                for name, value, shape in zip(names, found, shapes, strict=True)}

    def _one_member(self, inputs: Mapping[str, Var], start: Var, by_step: Var,
                    zero: Var) -> list[Var]:
        """Each particle goes through one member: what the controller does by default."""
        members, particles, size = self.members, self.config.particles, self.num_state
        share = particles // members
        # What every step takes, one row a slot and candidate: (H, E, N, .) with N = K / E x P.
        slot_actions = op.reshape(
            op.expand(op.unsqueeze(by_step, ints(1)), ints(1, particles, 1, 1)),
            ints(self.horizon, members, -1, self.num_action))
        slot_noise = op.reshape(op.add(op.unsqueeze(inputs['noise'], ints(2)), zero),
                                ints(self.horizon, members, -1, size))
        given = [slot_actions, slot_noise, *self._orders(inputs)]
        first = []
        if share > 1:
            # All particles of a member begin alike: its first step is computed once for them.
            action = op.expand(op.gather(by_step, ints(0), axis=0), ints(members, 1, 1))
            found = self.step(op.expand(start, ints(members, 1, 1)), action)
            mean, std = (self._each(found[name], share, size) for name in ('mean', 'std'))
            heads = [self._each(found[name], share) for name in self.heads]
            current = op.add(mean, op.mul(std, row(slot_noise, 0)))
            first = self._back([current, *heads], [row(order, 0) for order in given[2:]])
            current = first[0]
        else:
            current = op.expand(start, ints(members, 1, 1))

        def advance(current: Var, action: Var, noise: Var, *orders: Var) -> list[Var]:
            if orders:
                current = self._reordered(current, orders[0], size)
            found = self.step(current, action)
            after = op.add(found['mean'], op.mul(found['std'], noise))
            return self._back([after, *(found[name] for name in self.heads)], orders)
        done = 1 if first else 0
        if done == self.horizon:
            return [op.unsqueeze(value, ints(0)) for value in first]
        rest = walk(advance, current, [_from(value, done, self.horizon) for value in given],
                    self.horizon - done, (members, -1, size), loop=self.loop)
        if not first:
            return rest
        return [op.concat([op.unsqueeze(one, ints(0)), others], axis=0)
                for one, others in zip(first, rest, strict=True)]

    def _all_members(self, inputs: Mapping[str, Var], start: Var, by_step: Var,
                     zero: Var) -> list[Var]:
        """Every particle goes through all members."""
        members, particles = self.members, self.config.num_particles
        size = self.num_state
        noise = [] if self.config.propagation == 'mean' else [inputs['noise']]
        given = [by_step, *noise, *self._orders(inputs)]

        def advance(current: Var, action: Var, *rows: Var) -> list[Var]:
            noise, orders = rows[:1], rows[1:]
            if orders:
                current = op.gather(current, orders[0], axis=0)
            together = op.expand(op.reshape(current, ints(1, -1, size)), ints(members, 1, 1))
            each = op.expand(op.unsqueeze(action, ints(0, 1)), ints(members, particles, 1, 1))
            found = self.step(together, op.reshape(each, ints(members, -1, self.num_action)))
            mean, std, heads = found['mean'], found['std'], [found[name] for name in self.heads]
            middle = op.reduce_mean(mean, ints(0), keepdims=1)
            apart = op.sub(mean, middle)
            further = [] if self.unit is None else [self._disagreement(apart)]
            if self.config.is_sampled:
                own = op.reshape(self._own(mean, size), ints(particles, -1, size))
                after = op.add(own, op.mul(op.reshape(self._own(std, size),
                                                      ints(particles, -1, size)),
                                           op.unsqueeze(noise[0], ints(1))))
                further += [op.reshape(self._own(head), ints(particles, -1)) for head in heads]
            else:
                after = self._mixed(op.reshape(middle, ints(particles, -1, size)), apart, std,
                                    noise)
                further += [op.reshape(op.reduce_mean(head, ints(0), keepdims=0),
                                       ints(particles, -1)) for head in heads]
            if orders:
                return [op.gather(value, orders[1], axis=0) for value in (after, *further)]
            return [after, *further]
        current = op.expand(start, ints(particles, 1, 1))
        return walk(advance, current, given, self.horizon, (particles, -1, size), loop=self.loop)

    def _mixed(self, middle: Var, apart: Var, std: Var, noise: tuple[Var, ...]) -> Var:
        """Return the next states (K, P, S) by what all members say together."""
        if not noise:
            return middle
        variance = op.add(op.reduce_mean(op.mul(std, std), ints(0), keepdims=0),
                          op.reduce_mean(op.mul(apart, apart), ints(0), keepdims=0))
        total = op.reshape(root(variance), ints(self.config.particles, -1, self.num_state))
        if self.config.propagation == 'distribution_sampling':
            return op.add(middle, op.mul(total, op.unsqueeze(noise[0], ints(1))))
        drawn, anew = (op.unsqueeze(row(noise[0], index), ints(1)) for index in (0, 1))
        after = op.add(middle, op.mul(total, drawn))
        mean = op.reduce_mean(after, ints(0), keepdims=1)
        error = op.sub(after, mean)
        fitted = root(op.reduce_mean(op.mul(error, error), ints(0), keepdims=1))
        return op.add(mean, op.mul(fitted, anew))

    def _disagreement(self, apart: Var) -> Var:
        """Return the root mean square over members and fields, in units: (K, P)."""
        assert self.unit is not None
        scaled = op.mul(apart, op.const((1.0 / self.unit).astype(np.float32)))
        square = op.reduce_mean(op.mul(scaled, scaled), ints(0, 2), keepdims=0)
        return op.reshape(root(square), ints(self.config.num_particles, -1))

    def _own(self, value: Var, *tail: int) -> Var:
        """Return what each slot's own member says: (E, K x P, .) to (E, K / E x P, .)."""
        members = self.members
        blocks = op.reshape(value, ints(members * members, -1, *tail))
        return op.gather(blocks, ints(*range(0, members * members, members + 1)), axis=0)

    def _orders(self, inputs: Mapping[str, Var]) -> list[Var]:
        return [inputs[name] for name in ('permutation', 'inverse')
                if self.config.propagation == 'ts1']

    def _back(self, values: Sequence[Var], orders: Sequence[Var]) -> list[Var]:
        """Put states and heads of the slots back to where their particles are."""
        if not orders:
            return list(values)
        states, *heads = values
        return [self._reordered(states, orders[1], self.num_state),
                *(self._reordered(head, orders[1]) for head in heads)]

    def _reordered(self, value: Var, order: Var, *tail: int) -> Var:
        """Reorder rows (E, K / E x P, .) among the K."""
        rows = op.reshape(value, ints(self.config.particles, -1, *tail))
        return op.reshape(op.gather(rows, order, axis=0), ints(self.members, -1, *tail))

    def _each(self, value: Var, share: int, *tail: int) -> Var:
        """Repeat (E, P, .) for each particle of a member: (E, K / E x P, .)."""
        repeated = op.expand(op.unsqueeze(value, ints(1)), ints(1, share, 1, *[1] * len(tail)))
        return op.reshape(repeated, ints(self.members, -1, *tail))


def _from(value: Var, start: int, end: int) -> Var:
    return op.slice(value, ints(start), ints(end), ints(0)) if start else value
