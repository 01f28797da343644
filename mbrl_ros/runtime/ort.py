"""ONNX Runtime sessions: the provider that was asked for, or a refusal that says why not."""

from typing import Literal

import onnx
import onnxruntime

from mbrl_ros.core.errors import ProviderError

Provider = Literal['cpu', 'cuda']
_NAMES = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}


def versions() -> tuple[str, list[str]]:
    """Return the version of ONNX Runtime and the providers it was built with."""
    return onnxruntime.__version__, onnxruntime.get_available_providers()


def open_session(model: onnx.ModelProto,
                 provider: Provider = 'cpu') -> onnxruntime.InferenceSession:
    """
    Open a session that runs on the given provider and on no other.

    One thread a session, without spinning: the caller runs several tiles at once on threads of its
    own, and spinning workers would take the cores from the rest of the process.

    Raises
    ------
    ProviderError
        If the provider is not there: ONNX Runtime alone would quietly take the CPU.

    """
    name = _NAMES[provider]
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise ProviderError(
            f"provider '{provider}' ({name}) is not in this ONNX Runtime "
            f'{onnxruntime.__version__}, which has {", ".join(available)}. '
            "Install onnxruntime-gpu for 'cuda', or set provider to 'cpu'.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                               providers=[name])
    except Exception as error:  # ONNX Runtime raises its own kinds, all for a failed start
        raise ProviderError(f"provider '{provider}' did not start: {error}") from error
    if session.get_providers()[0] != name:
        raise ProviderError(
            f"provider '{provider}' was asked for, but ONNX Runtime took "
            f'{session.get_providers()[0]}: the CUDA or cuDNN libraries do not load. '
            "Check nvidia-smi and LD_LIBRARY_PATH, or set provider to 'cpu'.")
    return session
