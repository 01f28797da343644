import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mbrl_ros'
FILES = sorted(PACKAGE.rglob('*.py'))
MAX_LINES = 400

# A part may import what its arrows reach, and itself. `runtime -> costs`: compiling a task means
# tracing its cost.
ARROWS = {
    'core': (),
    'costs': ('core',),
    'runtime': ('costs',),
    'data': ('core',),
    'sim': ('costs',),
    'planning': ('runtime',),
    'control': ('planning',),
    'learning': ('data', 'runtime'),
    'nodes': ('control', 'data', 'sim'),
    'bench': ('control', 'learning', 'nodes', 'sim'),
    'cli': ('bench', 'learning', 'nodes', 'sim'),
}

# Who may import a library: a part, or one file of it.
HOMES = {
    'torch': ('learning', 'bench/ceiling.py', 'bench/own_training.py', 'bench/workload.py'),
    'mujoco': ('sim',),
    'mcap': ('data',),
    'rosbags': ('data', 'bench/data.py'),
    'ndonnx': ('runtime',),
    'onnxruntime': ('runtime', 'learning/export.py'),
    'pyarrow': ('data/export.py',),
    'minari': ('data/export.py',),
    'gymnasium': ('data/export.py',),
    'h5py': ('data/export.py',),
    'optuna': ('learning/sweep.py',),
    'tensorboard': (),
    'pytorch_icem': (),
    'pytorch_mppi': (),
    'openvino': ('runtime/providers/openvino.py',),
    'spox': ('runtime', 'learning/export.py'),
    'ros': ('nodes',),
    'launch': ('nodes/launching.py',),
    'launch_ros': ('nodes/launching.py',),
}


def reach(part):
    found = {part}
    for direct in ARROWS[part]:
        found |= reach(direct)
    return found


def imports(path):
    """Return the modules of every import, wherever it stands: `from a import b` as a and a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: relative import'
            found.append(node.module)
            found.extend(f'{node.module}.{alias.name}' for alias in node.names)
    return found


def library(module):
    name = module.partition('.')[0]
    is_ros = name in ('rclpy', 'ament_index_python', 'std_srvs') \
        or name.endswith(('_msgs', '_interfaces'))
    return 'ros' if is_ros else name


def by_name(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize('path', FILES, ids=by_name)
def test_imports_follow_the_arrows(path):
    part = path.relative_to(PACKAGE).parts[0]
    for module in imports(path):
        target = (*module.split('.'), '')[1]
        if module.split('.')[0] != 'mbrl_ros' or target not in ARROWS:
            continue
        allowed = reach(part) if part in ARROWS else set()
        assert target in allowed, f'{part} must not import {module}'


@pytest.mark.parametrize('path', FILES, ids=by_name)
def test_libraries_stay_at_home(path):
    name = by_name(path)
    for module in imports(path):
        homes = HOMES.get(library(module))
        assert homes is None or name.startswith(tuple(f'{home}/' for home in homes)) \
            or name in homes, f'{module} belongs into {homes}'


def test_every_part_has_its_arrows():
    parts = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert parts <= set(ARROWS)


def test_a_part_without_init_would_not_be_installed():
    folders = {path.parent for path in FILES}
    assert {folder for folder in folders if not (folder / '__init__.py').is_file()} == set()


def test_the_table_of_nodes_needs_no_ros():
    known = {'mbrl_ros.core.errors', 'mbrl_ros.core.errors.SpecError'}
    modules = set(imports(PACKAGE / 'nodes' / 'table.py'))
    assert {module for module in modules if module.startswith('mbrl_ros')} == known
    assert {library(module) for module in modules} & set(HOMES) == set()


@pytest.mark.parametrize('path', FILES, ids=by_name)
def test_files_are_small_and_documented(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    missing = []

    def visit(node, prefix):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) \
                    and not child.name.startswith('_'):
                if not ast.get_docstring(child):
                    missing.append(f'{prefix}{child.name}')
                if isinstance(child, ast.ClassDef):
                    visit(child, f'{child.name}.')
    tree = ast.parse(text)
    visit(tree, '')
    assert missing == []
    assert ast.get_docstring(tree) or not tree.body, 'no docstring of the module'


def test_the_test_itself_sees_a_wrong_arrow():
    # nodes reaches everything but learning, bench and cli; core reaches nothing.
    assert set(ARROWS) - reach('nodes') == {'learning', 'bench', 'cli'}
    assert reach('core') == {'core'}
    assert reach('learning') == {'learning', 'data', 'runtime', 'costs', 'core'}
