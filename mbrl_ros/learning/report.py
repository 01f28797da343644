"""The report on a model: one HTML file that shows what its scores are made of."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning import plots
from mbrl_ros.learning.evaluation import Evaluation
from mbrl_ros.learning.gates import gates
from mbrl_ros.learning.html_page import listing, page, picture, table
from mbrl_ros.learning.one_step import Episodes, OneStep
from mbrl_ros.learning.region import Region
from mbrl_ros.runtime.dynamics import Dynamics

WIDE = (8.0, 3.6)


def render(dynamics: Dynamics, robot: RobotSpec, episodes: Episodes, scores: Evaluation,
           metadata: dict[str, Any], *, data: str, seed: int, lost: Sequence[str] = (),
           history: Sequence[dict[str, Any]] = ()) -> str:
    """
    Return the report as HTML that needs no other file.

    Parameters
    ----------
    dynamics : Dynamics
        The model.
    robot : RobotSpec
        Its robot.
    episodes : sequence of (states (T+1, S), actions (T, A))
        What it was scored on.
    scores : Evaluation
        The scores.
    metadata : dict
        Of the model.
    data : str
        What the episodes are, in words.
    seed : int
        Of the particles.
    lost : sequence of str
        What the scored bags lost, where that is not in the metadata.
    history : sequence of dict
        Of the training, where it is known.

    """
    one = OneStep.predict(dynamics, episodes)
    scored = Region.of(robot, one.state, one.action)
    region = Region.from_dict(metadata['region']) if 'region' in metadata else scored
    error = np.sqrt(((one.error() / dynamics.step_std) ** 2).mean(axis=1))
    states, actions = max(episodes, key=lambda pair: len(pair[1]))
    tall = (10.0, plots.height(robot))
    spearman, auroc = (_text(scores.doubt[key]) for key in ('spearman', 'auroc'))
    sections = [('Gates', _gates(robot, scores)), ('Scores a field', _fields(robot, scores))]
    if history:
        sections.append(('Training', picture(
            WIDE, lambda f: plots.draw_training(f.subplots(), history))))
    sections += [
        ('Error k steps ahead',
         f'<p>Open loop with the actions really taken. Recommended horizon: {scores.horizon} '
         'steps. The band is a bootstrap over blocks of 25 steps.</p>'
         + picture(WIDE, lambda f: plots.draw_k_step(f.subplots(), scores.k_step))),
        ('What the model foresaw, and what happened',
         '<p>The longest episode; the band is two standard deviations of the particles.</p>'
         + picture(tall, lambda f: plots.draw_fans(f, dynamics, robot, states, actions, seed))),
        ('One step: predicted against true change',
         picture(tall, lambda f: plots.draw_scatter(f, robot, one))),
        ('Calibration', _recalibrated(scores)
         + picture((5.0, 5.0), lambda f: plots.draw_calibration(f.subplots(),
                                                                scores.calibration))),
        ('Disagreement of the members against error',
         f'<p>Spearman {spearman}; area under the ROC curve {auroc} '
         f'({escape(scores.doubt["outside"])}).</p>'
         + picture(WIDE, lambda f: plots.draw_disagreement(f.subplots(),
                                                           dynamics.spread(one.mean), error))),
        ('Where the data lie',
         picture(tall, lambda f: plots.draw_coverage(f, robot, region, scored))),
        ("Terms of MBPO's bound",
         f'<p>epsilon_m {scores.bound["epsilon_m"]:.3g}, epsilon_pi '
         f'{scores.bound["epsilon_pi"]:.3g}, discount {scores.bound["discount"]:g}: the sum is '
         f'least at k = {scores.bound["best_k"]}. Above 1 it only says how the two weigh '
         '(Janner et al. 2019, Theorem 4.3).</p>'
         + picture(WIDE, lambda f: plots.draw_bound(f.subplots(), scores.bound))),
        ('Trained on', _provenance(metadata['data'])),
        ('Lost of the scored data', listing(lost))]
    if 'card' in metadata:
        sections.append(('Card', f'<pre>{escape(metadata["card"])}</pre>'))
    intro = f'<p>{escape(data)}, {scores.transitions} transitions.</p>'
    return page(f"Model of {metadata['robot']}", intro,
                [(heading, html) for heading, html in sections if html != listing(())])


def _gates(robot: RobotSpec, scores: Evaluation) -> str:
    rows = ''.join(
        f'<tr><td>{escape(gate.name)}</td><td>{_text(gate.value)}</td><td>{gate.limits}</td>'
        + ('<td class="met">met</td></tr>' if gate.is_met else
           '<td class="missed">not met</td></tr>')
        for gate in gates(robot, scores))
    return f'<table><tr><th>score</th><th>found</th><th>asked</th><th></th></tr>{rows}</table>'


def _fields(robot: RobotSpec, scores: Evaluation) -> str:
    factors, powers = ((scores.recalibration or {}).get(name, {}) for name in ('factor', 'power'))
    return table(
        ('field', 'unit', 'R2', 'NLL', 'in 95 % interval', 'calibration error', 'power of std',
         'factor on it'),
        [(field.name, field.unit, f'{scores.r2[field.name]:.4f}', f'{scores.nll[field.name]:.2f}',
          f'{scores.coverage_95[field.name]:.1%}', f'{scores.calibration_error[field.name]:.3f}',
          _text(powers.get(field.name)), _text(factors.get(field.name)))
         for field in robot.observation])


def _recalibrated(scores: Evaluation) -> str:
    text = 'Share of what happened that lies inside the central intervals of the mixture.'
    if scores.recalibration is not None:
        without = scores.recalibration['without']
        text += (' The std is recalibrated; each half of the data is scored with what was fitted'
                 f' to the other. Without, {without["coverage_95"]:.1%} were inside the 95 % '
                 f'interval, and the calibration error was {without["calibration_error"]:.3f}.')
    return f'<p>{text}</p>'


def _provenance(data: dict[str, Any]) -> str:
    bags = table(('bag', 'transitions', 'seconds', 'SHA-256'),
                 [(bag['bag'], str(bag['transitions']), f"{bag['seconds']:.1f}",
                   bag.get('hash', '')[:16]) for bag in data['bags']])
    return f"{bags}<p>Dataset {data['hash'][:16]}. Lost on the way:</p>" \
        + (listing(data['losses']) if data['losses'] else '<p>nothing</p>')


def _text(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
