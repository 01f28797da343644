"""One small recording in every form that rosbag2 has, and hostile changes to its files."""

from pathlib import Path

from bag_factory import cdr, joint_state, mark, MS, tiny_robot
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
import yaml

from mbrl_ros.data.bag_metadata import (
    BagFile,
    BagTopic,
    message_definition,
    metadata_text,
    typestore,
)

STEPS = 12
FLOAT = 'std_msgs/msg/Float64'
ROBOT = tiny_robot(action=[{
    'name': 'u', 'unit': 'N', 'topic': 'commands', 'type': FLOAT, 'path': 'data', 'min': -1.0,
    'max': 1.0, 'rate_limit': 100.0, 'safe_value': 0.0}])
# Storage and compression of rosbags' writer.
FOREIGN = {
    'rosbags_mcap': (StoragePlugin.MCAP, CompressionMode.NONE),
    'mcap_file_zstd': (StoragePlugin.MCAP, CompressionMode.FILE),
    'mcap_message_zstd': (StoragePlugin.MCAP, CompressionMode.MESSAGE),
    'mcap_chunk_zstd': (StoragePlugin.MCAP, CompressionMode.STORAGE),
    'sqlite3': (StoragePlugin.SQLITE3, CompressionMode.NONE),
    'sqlite3_file_zstd': (StoragePlugin.SQLITE3, CompressionMode.FILE),
    'sqlite3_message_zstd': (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
}
OURS = ('ours', 'ours_marked', 'small_chunks')
FORMS = (*OURS, *FOREIGN)


def recording(*, marked=False):
    """Return messages of ROBOT at 10 Hz; every number of every message is its own."""
    messages = [('episode', 0, mark('start'))] if marked else []
    for step in range(STEPS):
        stamp_ns = step * 100 * MS
        messages += [('commands', stamp_ns, typestore().types[FLOAT](step / 100)),
                     ('joint_states', stamp_ns,
                      joint_state(stamp_ns, [1.0 + step], [0.0], ['slider']))]
    return messages + [('episode', STEPS * 100 * MS, mark('end'))] * marked


def make_bag(folder: Path, form: str, change=lambda number, payload: payload):
    """Write the recording in a form; `change` makes the payload of each message another one."""
    messages = [(topic, time_ns, message.__msgtype__, change(number, cdr(message))) for number,
                (topic, time_ns, message) in enumerate(recording(marked=form == 'ours_marked'))]
    if form == 'small_chunks':
        _write_chunks(folder, messages)
        return folder
    if form in OURS:
        from mbrl_ros.data.bag_writer import BagWriter  # noqa: PLC0415 (starts a thread)
        with BagWriter(folder) as writer:
            for topic, time_ns, kind, payload in messages:
                writer.add_topic(f'/{topic}', kind, [])
                writer.write(f'/{topic}', payload, time_ns, time_ns)
        return folder
    plugin, mode = FOREIGN[form]
    writer = Writer(folder, version=9, storage_plugin=plugin)
    if mode is not CompressionMode.NONE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, time_ns, kind, payload in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(f'/{topic}', kind,
                                                           typestore=typestore())
            writer.write(connections[topic], time_ns, payload)
    return folder


def _write_chunks(folder, messages):
    """Write an MCAP file of many chunks, each with its CRC."""
    folder.mkdir()
    channels, counts = {}, {}
    with (folder / 'bag_0.mcap').open('wb') as stream:
        writer = McapWriter(stream, chunk_size=400, compression=CompressionType.LZ4)
        writer.start(profile='ros2', library='test')
        for topic, time_ns, kind, payload in messages:
            if topic not in channels:
                schema = writer.register_schema(kind, 'ros2msg',
                                                message_definition(kind)[0].encode())
                channels[topic] = writer.register_channel(f'/{topic}', 'cdr', schema)
            writer.add_message(channels[topic], time_ns, payload, time_ns)
            counts[topic, kind] = counts.get((topic, kind), 0) + 1
        writer.finish()
    (folder / 'metadata.yaml').write_text(metadata_text(
        [BagFile('bag_0.mcap', messages[0][1], messages[-1][1], len(messages))],
        [(BagTopic(f'/{topic}', kind, ''), count) for (topic, kind), count in counts.items()],
        {}, 'kilted'))


def storage_file(bag: Path) -> Path:
    """Return the one storage file of a bag."""
    return next(file for file in bag.iterdir() if file.name != 'metadata.yaml')


# Those of libyaml, where PyYAML has them.
FAST_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
FAST_DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)
HUGE = (b'\xff' * 8, b'\xff\xff\xff\x7f', b'\x00\x00\x00\x00\x10\x00\x00\x00',
        b'\xff\xff\xff\xff\xff\xff\xff\x7f', b'\x00' * 8)


def change_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Return bytes with one kind of damage, at random places."""
    damaged = bytearray(data)
    size = len(damaged)
    if not size:
        return b'\x00'
    place, other = (int(value) for value in rng.integers(0, size, 2))
    length = int(rng.integers(1, 64))
    kind = rng.integers(0, 10)
    if kind == 0:
        for where in rng.integers(0, size, rng.integers(1, 4)):
            damaged[where] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        damaged[place] = int(rng.integers(0, 256))
    elif kind == 2:
        del damaged[place:]
    elif kind == 3:
        del damaged[place:place + length]
    elif kind == 4:
        damaged[place:place] = damaged[place:place + length]
    elif kind == 5:
        damaged[place:place + length] = bytes(len(damaged[place:place + length]))
    elif kind == 6:
        one, two = damaged[place:place + length], damaged[other:other + length]
        damaged[place:place + length], damaged[other:other + length] = two, one
    elif kind == 7:
        value = HUGE[int(rng.integers(0, len(HUGE)))]
        damaged[place:place + len(value)] = value
    elif kind == 8:
        damaged[place:place] = rng.bytes(length)
    else:
        damaged += damaged[place:]
    return bytes(damaged)


VALUES = (None, -1, 0, 1, 2**31, 2**63, -2**63, 10**30, 1.5, float('nan'), float('inf'), True, '',
          'x', '0', '../../etc/passwd', '/etc/passwd', '/dev/zero', '.', '..', '~',
          'bag_0.mcap/', '[bold red]markup[/]', '[/nonsense]', '\u202e\x1b[31m', 'a' * 5000, [],
          [[]], [None], {}, {'a': 1}, ['../../../etc/passwd'], 'sqlite3', 'mcap', 'zstd', 'file',
          'message', 'FILE', 'std_msgs/msg/String', 'sensor_msgs/msg/JointState', '/joint_states',
          '/commands', 'jazzy', 'cdr', 9, 99)


def change_values(rng: np.random.Generator, text: str) -> str:
    """Return a metadata.yaml in which some values are others, gone, or twice."""
    content = yaml.load(text, FAST_LOADER)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(content))
        parent, key = places[int(rng.integers(0, len(places)))]
        kind = rng.integers(0, 8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.append(parent[key])
        elif kind == 2 and isinstance(parent[key], int):
            parent[key] += int(rng.integers(-3, 4))
        else:
            parent[key] = VALUES[int(rng.integers(0, len(VALUES)))]
        if not content:
            break
    return yaml.dump(content, Dumper=FAST_DUMPER, sort_keys=False, allow_unicode=True)


def _places(node):
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


LEVELS = 12  # nine to the twelfth: more than any memory holds
LAUGHS = 'a0: &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 9)}]\n' for k in range(1, LEVELS))
TEXTS = (
    '', '\n', 'rosbag2_bagfile_information:\n', 'rosbag2_bagfile_information: []', '[]', 'null',
    '\x00', '{', '[' * 5000, '{a: ' * 5000, '- ' * 5000, LAUGHS,
    LAUGHS + f'rosbag2_bagfile_information: *a{LEVELS - 1}\n',
    'rosbag2_bagfile_information: &a\n  version: *a\n  relative_file_paths: *a\n',
    'rosbag2_bagfile_information: !!python/object/apply:os.system ["touch owned"]',
    '!!binary "////"', '? [a]\n: b', '%YAML 9.9\n---\na', '"\\ud800"', '\ufeff', '1_000',
    '---\n' * 999)


def bombs(text: str) -> list[str]:
    """Return texts of metadata.yaml that are small, and large once expanded or printed."""
    keys = ('version', 'storage_identifier', 'relative_file_paths', 'duration', 'message_count',
            'topics_with_message_count', 'compression_format', 'custom_data', 'ros_distro',
            'files')
    lines = text.splitlines(keepends=True)
    found = [*TEXTS]
    for key in keys:
        start = next((n for n, line in enumerate(lines) if line.startswith(f'  {key}:')), None)
        if start is not None:
            end = next((n for n in range(start + 1, len(lines))
                        if lines[n][:3].strip() and not lines[n].startswith('  -')), len(lines))
            found.append(LAUGHS + ''.join(lines[:start]) + f'  {key}: *a{LEVELS - 1}\n'
                         + ''.join(lines[end:]))
    return found
