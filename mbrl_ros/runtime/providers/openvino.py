"""
OpenVINO on the CPU: float32, or bf16 products where the processor has the instructions.

An optional extra; nothing of it is imported before a session opens.
"""

from collections.abc import Mapping, Sequence
import importlib.util
import os
import sys
from threading import local, Lock
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto

from mbrl_ros.core.errors import ProviderError
from mbrl_ros.runtime.providers import Form, Session

PRECISIONS = ('float32', 'bf16')
HINTS = {'float32': 'f32', 'bf16': 'bf16'}


def problem() -> str:
    """Return how to install OpenVINO, if it is missing."""
    if importlib.util.find_spec('openvino') is not None:
        return ''
    return "OpenVINO is not installed. Run: pip install openvino, or set provider to 'cpu'."


def form(precision: str) -> Form:
    """
    Return a Loop over batched products: the fastest of the four, measured.

    In bf16 an unrolled graph takes 1.07 times as long for 5 x (4 x 200) networks, 1.46 times for
    5 x (3 x 128); one product a member 1.06 and 1.13 times.
    """
    return Form(loop=True)


def num_parallel() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def open_session(model: bytes, precision: str) -> Session:
    """
    Open a session with one stream of one thread a core.

    Raises
    ------
    ProviderError
        If the processor has no bf16 instructions (OpenVINO would take float32 quietly), or
        OpenVINO cannot read the graph.

    """
    openvino = _import()
    core = openvino.Core()
    able = core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    if precision == 'bf16' and 'BF16' not in able:
        raise ProviderError(
            "provider 'openvino': this processor has no bf16 instructions (AVX512-BF16 or AMX): "
            f'{core.get_property("CPU", "FULL_DEVICE_NAME")} has {", ".join(able)}. '
            'Set precision to float32.')
    graph = onnx.load_from_string(model)
    _narrow(graph.graph)
    if precision == 'bf16':
        _expose_features(graph.graph, set())
    try:
        return _OpenvinoSession(core, graph.SerializeToString(), {
            # A thread that calls runs its tile by itself, on a stream of its own: no pool whose
            # workers would spin, no hand-over. Two tiles on one stream would wait for each other.
            'NUM_STREAMS': num_parallel(),
            'INFERENCE_NUM_THREADS': num_parallel(),
            # Pinned, the threads of two processes would share one core and leave another idle.
            'ENABLE_CPU_PINNING': False,
            # The default is bf16 where the processor has it.
            'INFERENCE_PRECISION_HINT': HINTS[precision],
            # It would stay on in the calling thread, for NumPy too.
            'CPU_DENORMALS_OPTIMIZATION': False})
    except RuntimeError as error:
        raise ProviderError(f'OpenVINO did not start: {error}') from error


def _import() -> Any:
    """
    Import OpenVINO without openvino_telemetry.

    Pip installs that along, and `import openvino` sends an event to a server with it; a robot
    tells nobody. OpenVINO does without if it is not there.
    """
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
    import openvino  # noqa: PLC0415

    return openvino


class _OpenvinoSession:
    """
    One compiled graph a population, one request a thread and population.

    A graph of fixed shapes runs a step without shape inference: 0.95 of the time for
    5 x (4 x 200), 0.77 for 5 x (3 x 128). It takes 0.2 s at the first run of a population.
    """

    def __init__(self, core: Any, model: bytes, settings: Mapping[str, Any]) -> None:
        self._core, self._settings = core, settings
        self._model = core.read_model(model)
        self._inputs = {name for port in self._model.inputs for name in port.names}
        self._compiled: dict[int, Any] = {}
        self._lock = Lock()
        self._thread = local()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return copies of the named outputs."""
        request = self._request(feeds['actions'].shape)
        # It drops an input that nothing depends on, and then refuses its value.
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        request.infer(given, share_inputs=True, share_outputs=True)
        return [request.get_tensor(name).data.copy() for name in outputs]

    def _request(self, shape: tuple[int, ...]) -> Any:
        """Return the calling thread's request for actions of a shape."""
        requests = self._thread.__dict__
        key = str(shape[0])
        if key not in requests:
            with self._lock:
                if shape[0] not in self._compiled:
                    model = self._model.clone()
                    model.reshape({'actions': list(shape)})
                    self._compiled[shape[0]] = self._core.compile_model(model, 'CPU',
                                                                        self._settings)
            requests[key] = self._compiled[shape[0]].create_infer_request()
        return requests[key]


def _narrow(graph: onnx.GraphProto) -> None:
    """
    Replace float64 by float32, which is what OpenVINO computes with anyway.

    OpenVINO 2026.4.1 merges a quotient in float64, which is how ndonnx's mean ends, into the sum
    before it and gets it wrong: at fixed shapes every row but the first is garbage. A cost term
    may hold one.
    """
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == 'Cast' and attribute.name == 'to' \
                    and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
            if attribute.t.data_type == TensorProto.DOUBLE:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
            if attribute.HasField('g'):
                _narrow(attribute.g)


def _expose_features(graph: onnx.GraphProto, weights: set[str]) -> int:
    """
    Make what enters the networks an output, here and in the loop; return how many there are.

    With the hint bf16 OpenVINO takes everything for bf16 but what lies between a product and an
    output. So the state is float32, but its features (sine, cosine, distance from the mean)
    would be those of a state rounded to 8 bits: of a wheel at 100 rad, wrong by 0.25 rad. What is
    an output itself is not rounded, nor is what it is made from; copying it takes no time that
    could be measured.

    Parameters
    ----------
    graph : GraphProto
        One step in itself, or in the body of its loop.
    weights : set of str
        Constants of three axes (E, I, O) around it.

    """
    weights = weights | {node.output[0] for node in graph.node if node.op_type == 'Constant'
                         and len(node.attribute[0].t.dims) == 3}
    after: set[str] = set()  # values that depend on a product
    found: list[str] = []
    for node in list(graph.node):
        if node.op_type == 'Loop':
            for number in range(_expose_features(node.attribute[0].g, weights)):
                found.append(f'{node.output[0]}/features/{number}')
                node.output.append(found[-1])
        is_product = node.op_type == 'MatMul' and node.input[1] in weights
        if is_product and node.input[0] not in after:
            found.append(f'{node.output[0]}/features')
            graph.node.append(helper.make_node('Identity', [node.input[0]], [found[-1]]))
        if is_product or not after.isdisjoint(node.input):
            after.update(node.output)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                        for name in found)
    return len(found)
