"""ONNX Runtime sessions: on the provider that was asked for, or a refusal that says why not."""

from collections.abc import Mapping
from typing import Any

import onnxruntime

from mbrl_ros.core.errors import ProviderError


def versions() -> tuple[str, list[str]]:
    """Return the version of ONNX Runtime and the providers it was built with."""
    return onnxruntime.__version__, onnxruntime.get_available_providers()


def open_ort(model: bytes, name: str, options: Mapping[str, str] | None = None
             ) -> onnxruntime.InferenceSession:
    """
    Open a session that runs on ONNX Runtime's provider `name` and on no other.

    One thread a session, without spinning: the caller runs several tiles at once on threads of its
    own, and spinning workers would take the cores from the rest of the process.

    Raises
    ------
    ProviderError
        If the provider does not start: ONNX Runtime alone would quietly take the CPU.

    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, settings,
                                               providers=[(name, dict(options or {}))])
    except Exception as error:  # ONNX Runtime raises its own kinds, all for a failed start
        raise ProviderError(f'{name} did not start: {error}') from error
    taken: Any = session.get_providers()[0]
    if taken != name:
        raise ProviderError(
            f'{name} was asked for, but ONNX Runtime took {taken}: the CUDA or cuDNN libraries do '
            "not load. Check nvidia-smi and LD_LIBRARY_PATH, or set provider to 'cpu'.")
    return session
