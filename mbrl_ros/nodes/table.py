"""
The one table of our nodes: what runs, in which group, with which parameters.

The launch files and `mbrl-ros demo` both read it, so they cannot start different things. It knows
neither rclpy nor launch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
import json
from pathlib import Path
import sys
from typing import Any

from mbrl_ros.core.errors import SpecError

LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
_BOOLEANS = {'true': True, 'false': False}
REAL_ROBOT = 'real_robot'


@dataclass(frozen=True)
class NodeOptions:
    """
    What a user may choose for a group of nodes: the arguments of every launch file.

    An option whose metadata name a group, as `only`, is an argument of that one alone.
    """

    robot: str = field(default='cartpole', metadata={
        'help': 'Robot spec: a shipped name or a .yaml path'})
    task: str = field(default='cartpole_swingup', metadata={
        'help': 'Task spec: a shipped name or a .yaml path'})
    model: str = field(default='', metadata={
        'help': 'A dynamics.onnx, a folder holding one, or a shipped name; empty: the model '
                'shipped for the robot'})
    params_file: str = field(default='', metadata={
        'help': 'ROS parameter file (YAML) that overrides the parameters set here; empty: none'})
    use_sim_time: bool = field(default=False, metadata={
        'help': 'Follow /clock; the simulated robot then publishes it and runs in lock-step with '
                'the controller of the same launch'})
    namespace: str = field(default='', metadata={
        'help': 'Namespace of the nodes and of their relative topics'})
    log_level: str = field(default='info', metadata={
        'help': f'Log level of the nodes: {", ".join(LOG_LEVELS)}'})
    remap: str = field(default='', metadata={
        'help': "Topics under other names, for all nodes: 'from:=to from:=to'"})
    rviz: bool = field(default=False, metadata={
        'help': 'Show plans and robot in RViz, which a ROS distribution brings'})
    autostart: bool = field(default=False, metadata={
        'only': REAL_ROBOT,
        'help': 'The controller drives at once; without it, it waits, configured, for '
                '`ros2 lifecycle set /mpc_controller activate`'})

    def __post_init__(self) -> None:
        if self.log_level.lower() not in LOG_LEVELS:
            raise SpecError(f"log_level '{self.log_level}' is not one of: "
                            f'{", ".join(LOG_LEVELS)}')
        if self.params_file and not Path(self.params_file).is_file():
            raise SpecError(f"params_file '{self.params_file}' is not a file")
        for rule in self.remap.split():
            source, separator, target = rule.partition(':=')
            if not (separator and source and target):
                raise SpecError(f"remap: '{rule}' is not 'from:=to'. "
                                "Such as: 'joint_states:=/arm/joint_states'")

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> 'NodeOptions':
        """
        Build from the texts of launch arguments; keys that are not options are ignored.

        Raises
        ------
        SpecError
            If a switch is neither true nor false, log_level is unknown, a remap has another
            form, or there is no params_file.

        """
        values: dict[str, Any] = {f.name: texts[f.name] for f in fields(cls) if f.name in texts}
        for option in fields(cls):
            text = values.get(option.name)
            if isinstance(option.default, bool) and text is not None:
                if text.lower() not in _BOOLEANS:
                    raise SpecError(f"{option.name} '{text}' is not one of: true, false")
                values[option.name] = _BOOLEANS[text.lower()]
        return cls(**values)


@dataclass(frozen=True)
class NodeEntry:
    """
    One node: its name (also its executable), its module and where its parameters come from.

    `parameters` maps a parameter of the node to the NodeOptions field, or property, it takes;
    `fixed` gives parameters that are the same for everybody.
    """

    name: str
    module: str
    parameters: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def values(self, options: NodeOptions, extra: Mapping[str, Any] | None = None
               ) -> dict[str, Any]:
        """Return the node's parameters: those from `options`, autostart, then `extra`."""
        values = {name: getattr(options, source) for name, source in self.parameters.items()}
        # The node brings itself up, which works without a launch system and on distributions
        # whose launch cannot do it.
        return {'autostart': True} | values | dict(self.fixed) | dict(extra or {})

    def ros_arguments(self, options: NodeOptions, extra: Mapping[str, Any] | None = None
                      ) -> list[str]:
        """
        Return what follows `--ros-args`, without the namespace.

        The parameters file comes last, so that it wins over the values before it.
        """
        arguments = [text for rule in options.remap.split() for text in ('-r', rule)]
        for name, value in self.values(options, extra).items():
            # JSON is YAML: quotes keep a name such as '7' or 'on' a string.
            arguments += ['-p', f'{name}:={json.dumps(value)}']
        if options.params_file:
            arguments += ['--params-file', options.params_file]
        return [*arguments, '--log-level', options.log_level]

    def command(self, options: NodeOptions, extra: Mapping[str, Any] | None = None) -> list[str]:
        """Return the command line that runs the node with this Python, without any launch."""
        namespace = ['-r', f'__ns:=/{options.namespace.strip("/")}'] if options.namespace else []
        return [sys.executable, '-m', self.module, '--ros-args', *namespace,
                *self.ros_arguments(options, extra)]


_SIM_ROBOT = NodeEntry('sim_robot', 'mbrl_ros.nodes.sim_robot', {
    # It makes the time that others follow, so it never follows /clock itself.
    'robot': 'robot', 'lockstep': 'use_sim_time'})
_DATA_LOGGER = NodeEntry('data_logger', 'mbrl_ros.nodes.data_logger', {
    'robot': 'robot', 'use_sim_time': 'use_sim_time'}, fixed={'record': True})
_MPC_CONTROLLER = NodeEntry('mpc_controller', 'mbrl_ros.nodes.mpc_controller', {
    'robot': 'robot', 'task': 'task', 'model': 'model', 'use_sim_time': 'use_sim_time'})
# A robot must not move because a launch file was started.
_WAITING_CONTROLLER = replace(_MPC_CONTROLLER, parameters={
    **_MPC_CONTROLLER.parameters, 'autostart': 'autostart'}, fixed={'autoconfigure': True})
# Only a robot that waits for commands is driven in lock-step; another robot on /clock is not.
_DEMO_CONTROLLER = replace(_MPC_CONTROLLER, parameters={
    **_MPC_CONTROLLER.parameters,
    'lockstep': 'use_sim_time'},
    # A simulator takes no harm from late plans, and the report counts them.
    fixed={'allow_slow': True})

GROUPS: Mapping[str, Sequence[NodeEntry]] = {
    'sim': (_SIM_ROBOT,),
    'record': (_DATA_LOGGER,),
    'control': (_MPC_CONTROLLER,),
    REAL_ROBOT: (_DATA_LOGGER, _WAITING_CONTROLLER),
    'demo': (_SIM_ROBOT, _DATA_LOGGER, _DEMO_CONTROLLER),
}
