"""
ONNX Runtime on an NVIDIA GPU: tensors bound on the device, replayed as a CUDA graph.

A plan is thousands of small kernels; launched one by one they would take longer than they run. A
CUDA graph launches them all at once, and wants fixed addresses and shapes: hence one set of bound
tensors and one captured graph a population.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import ctypes

import numpy as np
import onnxruntime

from mbrl_ros.runtime.ort import open_ort, versions
from mbrl_ros.runtime.providers import Form, Session

PRECISIONS = ('float32', 'tf32', 'float16')
NAME = 'CUDAExecutionProvider'


def problem() -> str:
    """Return what this ONNX Runtime or this machine lacks."""
    version, present = versions()
    if NAME not in present:
        return (f'{NAME} is not in this ONNX Runtime {version}, which has {", ".join(present)}. '
                "Install onnxruntime-gpu in place of onnxruntime, or set provider to 'cpu'.")
    # ONNX Runtime lists what it was built with, whether there is a GPU or not.
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError as error:
        return f"no NVIDIA driver ({error}). Install it, or set provider to 'cpu'."
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return (f'the NVIDIA driver finds no GPU (CUDA error {status}). Check nvidia-smi, or set '
                "provider to 'cpu'.")
    return ''


def form(precision: str) -> Form:
    """Return an unrolled graph with batched products."""
    return Form(trunk='float16' if precision == 'float16' else 'float32')


def num_parallel() -> int:
    """Return 1: the device takes the whole population at once."""
    return 1


def open_session(model: bytes, precision: str) -> Session:
    """Open a session that captures CUDA graphs."""
    return BoundSession(lambda: open_ort(model, NAME, {
        'enable_cuda_graph': '1', 'use_tf32': str(int(precision == 'tf32'))}))


class BoundSession:
    """
    One captured graph a population, each with its tensors on the device.

    All of it happens on one thread of the session's own: ONNX Runtime forbids a session that
    captures CUDA graphs to be run from several, and ours is asked by the thread that plans, by the
    one that reports and by the one that configures.

    Parameters
    ----------
    make : callable
        Opens the session.
    device : {'cuda', 'cpu'}
        Where the tensors are; on a CPU nothing is captured, but all else is the same.

    """

    def __init__(self, make: Callable[[], onnxruntime.InferenceSession],
                 device: str = 'cuda') -> None:
        self._thread = ThreadPoolExecutor(1, 'cuda')
        self._session, self._device = self._thread.submit(make).result(), device
        self._captured: dict[int, _Captured] = {}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Copy in, replay, copy the named outputs back."""
        return self._thread.submit(self._run, outputs, feeds).result()

    def _run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        population = len(feeds['actions'])
        if population not in self._captured:
            self._captured[population] = _Captured(self._session, self._device, feeds,
                                                   len(self._captured))
        return self._captured[population].run(outputs, feeds)


class _Captured:
    """The bound tensors and the graph of one population."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str,
                 feeds: Mapping[str, np.ndarray], number: int) -> None:
        self._session = session
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry('gpu_graph_id', str(number))
        self._binding = session.io_binding()
        # Of a copy: on a CPU the tensor would be the caller's array, which later runs overwrite.
        self._inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
                        for name, array in feeds.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        population = len(feeds['actions'])
        self._outputs = {}
        for output in session.get_outputs():
            shape = [size if isinstance(size, int) else population for size in output.shape]
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, np.float32, device, 0)
            self._outputs[output.name] = value
            self._binding.bind_ortvalue_output(output.name, value)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Copy in, replay (the first run captures), copy out."""
        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        # A copy: on a CPU the array would be the bound tensor itself, overwritten by the next run.
        return [self._outputs[name].numpy().copy() for name in outputs]
