"""mbrl-lib's PETS on our ensemble: plans, and costs of given candidates."""

from contextlib import contextmanager
from copy import deepcopy
import time
from types import SimpleNamespace
from unittest import mock

from configuration import configuration
from gymnasium.spaces import Box
from mbrl.env.pets_cartpole import CartPoleEnv
from mbrl.env.reward_fns import cartpole_pets
from mbrl.env.termination_fns import no_termination
from mbrl.models import ModelEnv
from mbrl.planning import create_trajectory_optim_agent_for_model
from mbrl.util.common import create_one_dim_tr_model
import numpy as np
from omegaconf import OmegaConf
import torch

# What a request may change of the budget, and where mbrl-lib's configuration holds it.
BUDGET = {'population': 'overrides.cem_population_size', 'particles': 'algorithm.num_particles',
          'horizon': 'overrides.planning_horizon', 'iterations': 'overrides.cem_num_iters'}
WARM_UP = {'population': 20, 'particles': 5, 'horizon': 2, 'iterations': 1}
# The control range in mbrl-lib's cartpole.xml, which the package on PyPI does not include.
FORCE_LIMIT = 3.0
# From state to our features: these fields, then sine and cosine of the hinge.
LINEAR, HINGE = [0, 2, 3], 1


def input_order():
    """Return where each of mbrl-lib's inputs stands in ours, from the features of one state."""
    state = np.array([0.3, 0.7, 1.1, 1.9])
    ours = [*state[LINEAR], np.sin(state[HINGE]), np.cos(state[HINGE])]
    order = [int(np.flatnonzero(np.isclose(ours, value))[0])
             for value in CartPoleEnv.preprocess_fn(state)]
    return [*order, len(order)]


def build_model(config, arrays):
    """Let mbrl-lib build its model from its configuration, and put our ensemble in it."""
    count = sum(name.startswith('weights.') for name in arrays)
    weights, biases = ([arrays[f'{name}.{i}'].astype(np.float64) for i in range(count)]
                       for name in ('weights', 'biases'))
    elites, num_inputs, width = weights[0].shape
    if any(weight.shape[1:] != (width, width) for weight in weights[1:-1]):
        raise ValueError('mbrl-lib knows hidden layers of one width only')
    if elites != config.overrides.num_elites:
        raise ValueError(f'{elites} members for its {config.overrides.num_elites} elites')
    order, num_state = input_order(), len(arrays['is_delta'])
    scale = np.concatenate([arrays['target_std'], np.ones(num_state)]).astype(np.float64)
    shift = 2 * np.log(scale[:num_state])
    config.dynamics_model.update({'num_layers': count - 1, 'hid_size': width,
                                  'in_size': num_inputs, 'out_size': num_state})
    config.overrides.no_delta_list = np.flatnonzero(arrays['is_delta'] == 0).tolist()
    wrapper = create_one_dim_tr_model(config, (num_state,), (num_inputs - len(order) + 1,))

    # Our networks predict normalised targets, mbrl-lib's raw ones: scale and shift move into the
    # last layer. The soft bounds of the log-variance move along, so they bound as before.
    weights[0] = weights[0][:, order]
    weights[-1] = weights[-1] * scale
    biases[-1] = biases[-1] * scale + np.concatenate([arrays['target_mean'], shift])
    model = wrapper.model
    layers = [*(layer[0] for layer in model.hidden_layers), model.mean_and_logvar]
    # The members beyond the elites are never run in planning: copies serve.
    members = np.arange(len(model)) % elites
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            layer.weight.copy_(torch.from_numpy(weight[members]))
            layer.bias.copy_(torch.from_numpy(bias[members]))
    for name in ('min_logvar', 'max_logvar'):
        # One bound a member, of the elites only: mbrl-lib selects them in its layers, not here.
        bound = torch.tensor(arrays[name] + shift, dtype=torch.float32, device=model.device)
        setattr(model, name, torch.nn.Parameter(bound, requires_grad=False))
    normaliser = wrapper.input_normalizer
    for name in ('mean', 'std'):
        values = torch.from_numpy(arrays[f'input_{name}'][order])
        setattr(normaliser, name, values[None].to(getattr(normaliser, name)))
    wrapper.set_elite(range(elites))
    return wrapper


@contextmanager
def given_draw(model, noise):
    """
    Let the model sample with given numbers, and keep each particle with one member.

    Parameters
    ----------
    model : mbrl.models.GaussianMLP
        The ensemble.
    noise : Tensor, shape (H, K, S)
        Standard normal; slot k of every candidate takes [h, k] at step h, and belongs to member
        k // (K / elites).

    """
    particles, elites = noise.shape[1], len(model.elite_models)
    if particles % elites:
        raise ValueError(f'{particles} particles cannot be split among {elites} elites')
    steps = iter(noise)

    def propagation_indices(batch_size, _):
        rows = torch.arange(batch_size, device=noise.device)
        return rows.view(-1, elites, particles // elites).transpose(0, 1).reshape(-1)

    def normal(mean, std, generator):
        return mean + std * next(steps).repeat(len(mean) // particles, 1)

    patch = mock.patch.object
    with (patch(torch, 'normal', normal), patch(model, 'propagation_method', 'fixed_model'),
          patch(model, 'sample_propagation_indices', propagation_indices)):
        yield


class Planner:
    """mbrl-lib's model and the agents that plan with it, one a budget."""

    def __init__(self, weights, device):
        with np.load(weights) as arrays:
            self._config = configuration(device)
            self._wrapper = build_model(self._config, dict(arrays))
        action = Box(-FORCE_LIMIT, FORCE_LIMIT, (1,), np.float32)
        state = Box(-np.inf, np.inf, (self._wrapper.model.out_size,), np.float64)
        self._generator = torch.Generator(device)
        self._env = ModelEnv(SimpleNamespace(observation_space=state, action_space=action),
                             self._wrapper, no_termination, cartpole_pets, self._generator)
        self._agents = {}
        self.plan(np.zeros(state.shape), 0, **WARM_UP)

    def _agent(self, budget):
        """Return the agent for a budget: a dict with some keys of BUDGET."""
        key = tuple(sorted(budget.items()))
        if key not in self._agents:
            config = deepcopy(self._config)
            for name, value in budget.items():
                OmegaConf.update(config, BUDGET[name], value)
            self._agents[key] = create_trajectory_optim_agent_for_model(
                self._env, config.algorithm.agent, config.algorithm.num_particles)
        return self._agents[key]

    def plan(self, state, seed, **budget):
        """Plan once; the time is that of the agent's `plan` alone."""
        agent = self._agent(budget)
        torch.manual_seed(seed)
        self._generator.manual_seed(seed)
        agent.reset()  # without the previous plan to start from, every plan does the same work
        start = time.perf_counter()
        actions = agent.plan(np.array(state, np.float64))
        return {'seconds': time.perf_counter() - start, 'actions': actions.tolist()}

    def costs(self, file):
        """Evaluate candidates with given random numbers."""
        model = self._wrapper.model
        with np.load(file) as arrays:
            noise, actions = (torch.tensor(arrays[name], dtype=torch.float32, device=model.device)
                              for name in ('noise', 'actions'))
            state = arrays['state'].astype(np.float64)
        with given_draw(model, noise):
            rewards = self._env.evaluate_action_sequences(actions, state, noise.shape[1])
        return {'costs': (-rewards).tolist()}

    def info(self):
        """Say what runs."""
        model = self._wrapper.model
        return {'budget': {name: OmegaConf.select(self._config, key)
                           for name, key in BUDGET.items()},
                'members': len(model), 'elites': len(model.elite_models),
                'hidden_layers': len(model.hidden_layers),
                'hidden_width': model.hidden_layers[0][0].out_size,
                'propagation': model.propagation_method}
