"""The model card: what a person should know before a robot is driven with a model."""

from typing import Any

from mbrl_ros.runtime.surprise import Calibration


def render(metadata: dict[str, Any]) -> str:
    """Return the card of a model as Markdown, from the metadata inside the file."""
    scores = metadata['holdout']
    rows = '\n'.join(
        f"| {field['name']} | {field['unit']} | {scores['r2'][field['name']]:.4f} | "
        f"{scores['nll'][field['name']]:.2f} | {scores['coverage_95'][field['name']]:.0%} | "
        f"{scores['calibration_error'][field['name']]:.3f} | "
        f"{scores['recalibration']['factor'][field['name']]:.2f} "
        f"std^{scores['recalibration']['power'][field['name']]:g} |"
        for field in metadata['signature']['observation'])
    steps = {int(row['k']): row for row in scores['k_step']}
    errors = ', '.join(f"{steps[k]['error']:.2g} ({steps[k]['low']:.2g} to "
                       f"{steps[k]['high']:.2g}) at {k}" for k in (1, 5, 10, 25) if k in steps)
    doubt = ', '.join(
        f'{name} ' + ('-' if scores['doubt'][key] is None else f"{scores['doubt'][key]:.2f}")
        for name, key in (('Spearman with the error', 'spearman'), ('AUROC', 'auroc')))
    sources = '\n'.join(f"- {item['bag']}: {item['transitions']} transitions, "
                        f"{item['seconds']:.1f} s" for item in metadata['data']['bags'])
    losses = '\n'.join(f'- {line}' for line in metadata['data']['losses']) or '- nothing'
    trust = Calibration.from_dict(metadata['trust'])
    usual = {name: scale.quantile(0.99) for name, scale in trust.scales.items()}
    units = ' x '.join(map(str, metadata['hidden_units']))
    return f"""# Model of {metadata['robot']}

{metadata['members']} networks of {units} units with {metadata['activation']}, one step is
{1.0 / metadata['signature']['control_rate_hz']:g} s. Made by mbrl_ros
{metadata['producer_version']}, seed {metadata['seed']}.

## Scores on held-out data ({scores['transitions']} transitions)

| field | unit | R2 of the change | NLL (N(0,1): 1.42) | in 95 % | calibration error | std to |
|---|---|---|---|---|---|---|
{rows}

Open-loop error in state deviations, with its 95 % band: {errors}.
Recommended horizon: {metadata['horizon']} steps (error up to 0.3).

Disagreement of the members: {doubt} out of distribution
({scores['doubt']['outside']}).

## Data

{sources}

Left out:

{losses}

Dataset hash {metadata['data']['hash'][:16]}, robot signature {metadata['signature_hash'][:16]}.

## Limits

The model knows the region of these bags. Elsewhere its members disagree; the controller stops
acting where they disagree by more than its limit (99 % of the held-out transitions stay below
{metadata['spread_p99']:.3g} typical steps).

The trust gauge compares with {trust.moments} moments of {trust.source}.
99 % of them stay below {usual['one_step']:.3g} predicted std one step ahead,
{usual['k_step']:.3g} predicted std {trust.steps} steps ahead, and {usual['plan_spread']:.3g}
typical steps of spread along {trust.steps} steps of a plan.
"""
