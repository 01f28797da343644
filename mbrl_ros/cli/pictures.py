"""Each picture of the demo's report."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np
from PIL import Image

from mbrl_ros.cli.trial import Trial
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.resample import Episode
from mbrl_ros.learning import plots
from mbrl_ros.learning.open_loop import k_step_errors, LONGEST_STEPS
from mbrl_ros.runtime.artifact import Artifact
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.sim.mujoco_robot import MujocoRobot
from mbrl_ros.sim.sketch import joint_positions, Sketch, sketch

STRIP_FRAMES = 8
FRAME_STEP = 2


def draw_returns(figure: Figure, trials: list[Trial], gate: float | None) -> None:
    """Draw the return of each trial over the robot time it took to get there."""
    axes = figure.subplots()
    axes.plot([t.robot_seconds for t in trials], [t.total_return for t in trials], marker='o')
    axes.set(xlabel='robot time recorded [s]', ylabel='return over the episode')
    if gate is not None:
        axes.axhline(gate, color='green', ls='--', label=f'gate {gate:g}')
        axes.legend()


def draw_fans(figure: Figure, model: Artifact, robot: RobotSpec, episode: Episode,
              seed: int) -> None:
    """Draw predictions from several moments of an episode against what happened."""
    plots.draw_fans(figure, Dynamics(model.model, model.metadata), robot, episode.states,
                    episode.actions, seed)


def draw_k_step(figure: Figure, model: Artifact, episode: Episode, seed: int) -> None:
    """Draw the open-loop error on the trial that the model drove, which it was not trained on."""
    k_step = k_step_errors(Dynamics(model.model, model.metadata),
                           [(episode.states, episode.actions)],
                           np.array(model.metadata['state_std']), LONGEST_STEPS, seed)
    plots.draw_k_step(figure.subplots(), k_step)


def draw_plan_times(figure: Figure, plan_ms: list[float], robot: RobotSpec,
                    deadline: float) -> None:
    """Draw the histogram of plan times, the deadline (a share of the period) and the period."""
    axes = figure.subplots()
    axes.hist(plan_ms, bins=40)
    axes.axvline(deadline * robot.dt_s * 1e3, color='red', label='deadline')
    axes.axvline(robot.dt_s * 1e3, color='red', ls=':', label='control period')
    if plan_ms:
        axes.axvline(float(np.quantile(plan_ms, 0.99)), color='black', ls='--',
                     label='99th percentile')
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel='plan [ms]', ylabel='plans', xlim=(0, None))
    axes.legend()


def animate(robot: RobotSpec, states: np.ndarray) -> tuple[bytes, bytes] | None:
    """
    Draw an episode without OpenGL.

    Returns
    -------
    gif, png : bytes
        Animation at real speed, and a strip of single frames; None for a robot that has no joint
        positions, or nothing that an outline could show.

    """
    if not joint_positions(robot, states[0]):
        return None
    simulated = MujocoRobot(robot)
    outlines = [sketch(simulated, joint_positions(robot, state)) for state in states]
    if not len(outlines[0].start):
        return None
    figure = Figure(figsize=(4.8, 2.4), dpi=80)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    frames = []
    for outline in outlines[::FRAME_STEP]:
        axes.clear()
        _draw_outline(axes, outline, outlines)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('P'))
    gif = io.BytesIO()
    frames[0].save(gif, format='gif', save_all=True, append_images=frames[1:], loop=0,
                   duration=round(FRAME_STEP * robot.dt_s * 1e3))
    strip = Figure(figsize=(12, 3.2), layout='constrained')
    chosen = np.linspace(0, len(outlines) - 1, STRIP_FRAMES).round().astype(int)
    for axes_of_frame, index in zip(strip.subplots(2, STRIP_FRAMES // 2).flat, chosen,
                                    strict=True):
        _draw_outline(axes_of_frame, outlines[index], outlines)
        axes_of_frame.set_title(f'{index * robot.dt_s:.1f} s', fontsize='small')
    png = io.BytesIO()
    strip.savefig(png, format='png', dpi=90)
    return gif.getvalue(), png.getvalue()


def _draw_outline(axes: Axes, outline: Sketch, episode: list[Sketch]) -> None:
    points = np.concatenate([np.concatenate([o.start, o.end]) for o in episode])
    low, high = points.min(axis=0) - 0.15, points.max(axis=0) + 0.15
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect='equal')
    axes.axis('off')
    unit = axes.get_window_extent().width / (high[0] - low[0]) * 72.0 / axes.figure.get_dpi()
    for start, end, radius, rgba in zip(outline.start, outline.end, outline.radius, outline.rgba,
                                        strict=True):
        axes.plot(*np.stack([start, end]).T, lw=max(1.0, 2.0 * radius * unit), color=rgba,
                  solid_capstyle='round')
