"""What a measurement was taken on: without it, a time says nothing."""

from datetime import datetime, UTC
import os
from pathlib import Path
import platform
import shutil
import subprocess
from typing import Any

from mbrl_ros.core.versions import installed_versions

PACKAGES = ('mbrl_ros', 'numpy', 'onnxruntime', 'onnxruntime-gpu', 'openvino', 'torch')


def describe_machine() -> dict[str, Any]:
    """Return date, processor, cores this process may use, GPU and versions."""
    return {'date': datetime.now(UTC).isoformat(timespec='seconds'),
            'processor': _processor(), 'cores': len(os.sched_getaffinity(0)), 'gpu': _gpu(),
            'system': f'{platform.system()} {platform.machine()}',
            'versions': installed_versions(PACKAGES)}


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.is_file() else []:
        name, _, value = line.partition(':')
        if name.strip() == 'model name':
            return value.strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Ask the driver, because torch may be a build without CUDA."""
    if shutil.which('nvidia-smi') is None:
        return None
    asked = subprocess.run(['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'],
                           capture_output=True, text=True, check=False, timeout=30)
    return asked.stdout.strip() or None
