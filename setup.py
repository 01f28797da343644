"""Build script of the ament_python package: colcon and pip both start here."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = 'mbrl_ros'
SHARE = Path('share') / NAME


def shared_files(*folders: str) -> list[tuple[str, list[str]]]:
    """List the files below `folders`, each to land in the same place below share/mbrl_ros."""
    files: dict[Path, list[str]] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                files.setdefault(SHARE / path.parent, []).append(str(path))
    return [(str(target), sources) for target, sources in files.items()]


setup(
    name=NAME,
    version='0.1.0',
    description='Learned-model predictive control for ROS 2: record a robot, train an ensemble '
                'of its dynamics, drive it.',
    maintainer='mbrl_ros maintainers',
    maintainer_email='maintainers@mbrl-ros.invalid',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(exclude=['test', 'test.*']),
    package_data={NAME: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (str(SHARE), ['package.xml']),
        *shared_files('launch', 'config', 'models'),
    ],
    zip_safe=False,
    install_requires=[
        'annotated-types>=0.6',
        'backports.zstd>=1; python_version < "3.14"',
        'lz4>=4',
        'matplotlib>=3.8',
        'mcap>=1.6',
        # 4.0.0 solves sparse constraint Jacobians wrongly. The `mujoco` package on top adds only
        # a viewer, and pins exactly that version.
        'mujoco-core>=4.0.1,<5',
        'ndonnx>=0.23,<0.24',
        'numpy>=2,<3',
        'onnx>=1.18,<2',
        'pillow>=10',
        'pydantic>=2.5,<3',
        'pyyaml>=6',
        'rich>=13',
        'rosbags>=0.11,<0.12',
        'scipy>=1.11',
        'spox>=0.18,<0.19',
        'typer>=0.12,<1',
    ],
    extras_require={
        # ONNX Runtime comes in two packages that share one import name and break each other when
        # both are installed, and pip cannot say "either". Hence two extras of which an
        # environment takes one, and no default: a default would force the CPU build on the GPU.
        'cpu': ['onnxruntime>=1.22,<2'],
        'gpu': ['onnxruntime-gpu[cuda,cudnn]>=1.22,<2'],
        # A second runtime for the CPU, faster where the processor has bf16.
        'openvino': ['openvino>=2026.1,<2027'],
        # Torch trains and exports. The controller never imports it, so a robot's computer can do
        # without its gigabytes.
        'train': ['torch>=2.6,<3'],
        # TensorBoard's event files, beside the training.csv that is always written.
        'tensorboard': ['tensorboard>=2.18,<3'],
        'sweep': ['optuna>=4,<6'],
        # Formats of `mbrl-ros bag export`, beside NumPy's own.
        'parquet': ['pyarrow>=18'],
        'minari': ['minari[hdf5]>=0.5.4,<0.6'],
        # The MJCF of the half-cheetah.
        'gymnasium': ['gymnasium>=1,<2'],
        # rclpy and messages from PyPI, where no ROS distribution is installed.
        'ros': [
            'ros-rclpy[fastrtps]',
            'ros-builtin-interfaces',
            'ros-diagnostic-msgs',
            'ros-geometry-msgs',
            'ros-lifecycle-msgs',
            'ros-nav-msgs',
            'ros-rcl-interfaces',
            'ros-rosgraph-msgs',
            'ros-sensor-msgs',
            'ros-std-msgs',
            'ros-std-srvs',
            'ros-trajectory-msgs',
            'ros-visualization-msgs',
        ],
        'test': ['hypothesis>=6.100', 'mypy>=1.13', 'pytest>=8',
                 'pytest-rerunfailures>=15', 'pytest-xdist>=3.6', 'ruff>=0.9',
                 # For what the extras above are tested with.
                 'gymnasium>=1,<2', 'minari[hdf5]>=0.5.4,<0.6', 'optuna>=4,<6', 'pyarrow>=18',
                 'tensorboard>=2.18,<3',
                 # What our planners are held against.
                 'pytorch-icem==0.1.0', 'pytorch-mppi>=0.9,<0.10'],
    },
    entry_points={
        'console_scripts': [
            'mbrl-ros = mbrl_ros.cli.main:main',
            'sim_robot = mbrl_ros.nodes.sim_robot:main',
            'data_logger = mbrl_ros.nodes.data_logger:main',
            'mpc_controller = mbrl_ros.nodes.mpc_controller:main',
        ],
    },
)
