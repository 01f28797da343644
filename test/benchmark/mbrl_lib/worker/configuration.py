"""mbrl-lib's own configuration of PETS on the cart-pole."""

from pathlib import Path

import mbrl
from omegaconf import OmegaConf


def configuration(device):
    """
    Compose mbrl-lib's configuration of PETS on the cart-pole, from its own files.

    The features are those of its paper version, the budget is that of `pets_cartpole`.
    """
    def read(name):
        return OmegaConf.load(Path(mbrl.__file__).parent / 'examples/conf' / f'{name}.yaml')

    config = OmegaConf.create({
        'device': device, 'debug_mode': False, 'algorithm': read('algorithm/pets'),
        'dynamics_model': read('dynamics_model/gaussian_mlp_ensemble'),
        'overrides': read('overrides/pets_cartpole'),
        # Its action_optimizer/cem.yaml is missing from the package on PyPI: this is the wiring
        # of that file, whose numbers are all in the overrides.
        'action_optimizer': {
            '_target_': 'mbrl.planning.CEMOptimizer', 'lower_bound': '???', 'upper_bound': '???',
            'num_iterations': '${overrides.cem_num_iters}',
            'elite_ratio': '${overrides.cem_elite_ratio}',
            'population_size': '${overrides.cem_population_size}',
            'alpha': '${overrides.cem_alpha}', 'device': '${device}',
            'clipped_normal': '${overrides.cem_clipped_normal}', 'return_mean_elites': True}})
    paper = read('overrides/pets_cartpole_paper_version')
    config.overrides.obs_process_fn = paper.obs_process_fn
    # Written for a Hydra that built only what it was asked for: newer ones build the parts too.
    config.algorithm.agent['_recursive_'] = False
    config.dynamics_model['_recursive_'] = False
    return config
