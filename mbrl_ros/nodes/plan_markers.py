"""The plan as RViz markers: what was thought of, coloured by its cost, and what was chosen."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
import os
from threading import get_native_id
import time
import traceback

from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point
import numpy as np
from rclpy.node import Node
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from mbrl_ros.control.build import build_planner, PilotConfig
from mbrl_ros.control.mpc import Decision
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.costs import CostFunction

NUM_CANDIDATES = 24
PERIOD_S, LIFETIME_S = 0.3, 1.0
NICENESS = 10
CANDIDATE_WIDTH_M, PLAN_WIDTH_M, GOAL_SIZE_M = 0.004, 0.015, 0.05
PLAN_COLOR, GOAL_COLOR = (0.2, 0.5, 1.0, 1.0), (1.0, 0.9, 0.1, 0.8)


class PlanMarkers:
    """
    Publishes ~/plan_markers, in a thread of its own that any other one goes before.

    The candidates shown are drawn as the planner drew its first ones: around the plan before,
    shifted. Each is the mean path of the point that a cost term drives (`position` of its file).

    Parameters
    ----------
    node : Node
        Owner of the publisher.
    robot, task, config : RobotSpec, TaskSpec, PilotConfig
        What is planned, and how; without a planner nothing is shown.
    frame : str
        TF frame that the point's coordinates are in.

    """

    def __init__(self, node: Node, robot: RobotSpec, task: TaskSpec, config: PilotConfig,
                 frame: str) -> None:
        self._node, self._frame, self._cost = node, frame, CostFunction(task, robot)
        point = self._cost.position(np.zeros(len(robot.observation)), np.zeros(len(robot.action)),
                                    task.goal_values)
        self._planner = None
        if not config.signal and point is not None:
            self._planner = build_planner(robot, task, config.planner, config.source_config)
        self.publisher = node.create_publisher(MarkerArray, '~/plan_markers', 1)
        self._worker = ThreadPoolExecutor(1, 'markers')
        # The thread begins here, not at the first plan: it would inherit the control loop's
        # scheduling.
        self._running: Future[None] = self._worker.submit(_go_last)
        self._next_s = 0.0

    def offer(self, decision: Decision, stamp_ns: int) -> None:
        """Show a decision, unless nobody looks or another one was shown just now; cheap."""
        now_s = time.monotonic()
        if self._planner is None or now_s < self._next_s or not self._running.done() \
                or not self.publisher.get_subscription_count():
            return
        self._next_s = now_s + PERIOD_S
        self._running = self._worker.submit(self._show, decision, stamp_ns)

    def close(self) -> None:
        """Stop the thread and release the topic."""
        self._worker.shutdown()
        self._node.destroy_publisher(self.publisher)

    def _show(self, decision: Decision, stamp_ns: int) -> None:
        try:
            self.publisher.publish(self.build(decision, stamp_ns))
        except Exception:  # nobody asks this thread how it went
            self._node.get_logger().error(f'~/plan_markers:\n{traceback.format_exc()}',
                                          throttle_duration_sec=10.0)

    def build(self, decision: Decision, stamp_ns: int) -> MarkerArray:
        """Build the markers of a decision; takes as long as a few dozen small rollouts."""
        stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        costs, paths = self._candidates(decision)
        lines = self._marker(stamp, 'candidates', Marker.LINE_LIST, CANDIDATE_WIDTH_M)
        # Worst first, so that the best is drawn over the others.
        for index in np.argsort(-costs):
            badness = (costs[index] - costs.min()) / max(np.ptp(costs), 1e-12)
            color = ColorRGBA(r=float(badness), g=float(1.0 - badness), b=0.0, a=0.5)
            points = _points(paths[index])
            for start, end in pairwise(points):
                lines.points.extend((start, end))
                lines.colors.extend((color, color))
            time.sleep(0)  # lets a thread in that waits for the interpreter
        plan = self._marker(stamp, 'plan', Marker.LINE_STRIP, PLAN_WIDTH_M, PLAN_COLOR)
        plan.points.extend(_points(self._path(
            decision, decision.actions, decision.prediction.states)))
        markers = [lines, plan]
        target = self._cost.target(decision.inputs.goal)
        if target is not None and np.isfinite(target).all():
            goal = self._marker(stamp, 'goal', Marker.SPHERE, GOAL_SIZE_M, GOAL_COLOR)
            goal.pose.position, = _points(target[None])
            markers.append(goal)
        return MarkerArray(markers=markers)

    def _candidates(self, decision: Decision) -> tuple[np.ndarray, np.ndarray]:
        """Return the costs (n,) and paths (n, H + 1, 3) of candidates with a finite cost."""
        assert self._planner is not None
        generator = np.random.default_rng(decision.tick)
        population = np.asarray(self._planner.sample(decision.inputs.warm,
                                                     self._planner.noise(generator)))
        chosen = np.linspace(0, len(population) - 1, min(NUM_CANDIDATES, len(population)))
        found = [(actions, decision.rollout.predict(decision.start, actions, decision.draw))
                 for actions in population[chosen.astype(int)]]
        finite = [(actions, foreseen) for actions, foreseen in found
                  if np.isfinite(foreseen.cost) and np.isfinite(foreseen.states).all()]
        return (np.array([foreseen.cost for _, foreseen in finite]),
                np.array([self._path(decision, actions, foreseen.states)
                          for actions, foreseen in finite]))

    def _path(self, decision: Decision, actions: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return where the point goes, shape (H + 1, 3) [m]: mean over the particles."""
        mean = np.concatenate([decision.start[None], states.mean(axis=1)])
        point = self._cost.position(mean, np.concatenate([actions[:1], actions]),
                                    decision.inputs.goal)
        assert point is not None
        return point

    def _marker(self, stamp: Time, namespace: str, kind: int, size_m: float,
                color: Iterable[float] = (0.0, 0.0, 0.0, 1.0)) -> Marker:
        marker = Marker(ns=namespace, type=kind, action=Marker.ADD, lifetime=Duration(
            sec=int(LIFETIME_S), nanosec=int(LIFETIME_S % 1 * 1e9)))
        marker.header.frame_id, marker.header.stamp = self._frame, stamp
        marker.pose.orientation.w = 1.0
        marker.scale.x = size_m
        if kind == Marker.SPHERE:
            marker.scale.y = marker.scale.z = size_m
        marker.color.r, marker.color.g, marker.color.b, marker.color.a = color
        return marker


def _points(rows: np.ndarray) -> list[Point]:
    return [Point(x=x, y=y, z=z) for x, y, z in rows.astype(float).tolist()]


def _go_last() -> None:
    # On Linux a thread has a priority of its own.
    os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)
