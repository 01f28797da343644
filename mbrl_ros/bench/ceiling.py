"""The ceiling: how fast this machine multiplies large matrices, which no plan can beat."""

from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path
import time

import numpy as np
import torch

SIZE = 2048
CUDA_SIZE = 8192
REPEATS = 8
CPUINFO = Path('/proc/cpuinfo')
BF16_FLAGS = {'avx512_bf16', 'amx_bf16', 'bf16'}


@dataclass(frozen=True)
class Ceiling:
    """
    Rate of a square matrix product on one device in one precision.

    Attributes
    ----------
    device : {'cpu', 'cuda'}
        All cores this process may use, or the GPU.
    precision : str
        'float32', 'tf32', 'float16' or 'bf16'.
    gflops : float or None
        Best of several [GFLOP/s]; None where the processor lacks the precision.

    """

    device: str
    precision: str
    gflops: float | None


def has_bf16(cpuinfo: str) -> bool:
    """Return whether a processor multiplies in bf16, from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(':')
        if name.strip() in {'flags', 'Features'}:
            return bool(BF16_FLAGS & set(value.split()))
    return False


def ceilings(size: int = SIZE, cuda_size: int = CUDA_SIZE) -> list[Ceiling]:
    """
    Measure every ceiling of this machine.

    The one of float32 on the CPU is the better of NumPy's and torch's. Precisions that only a
    runtime emulates have no ceiling.
    """
    cores, before = len(os.sched_getaffinity(0)), torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        found = [Ceiling('cpu', 'float32', max(_numpy(size), _torch(size, torch.float32))),
                 Ceiling('cpu', 'bf16', _torch(size, torch.bfloat16) if _here() else None)]
    finally:
        torch.set_num_threads(before)
    return found + (_cuda(cuda_size) if torch.cuda.is_available() else [])


def best_of(first: list[Ceiling], second: list[Ceiling]) -> list[Ceiling]:
    """Return the higher of two measurements of each, from before and after what they judge."""
    return [a if a.gflops is None or b.gflops is None or a.gflops > b.gflops else b
            for a, b in zip(first, second, strict=True)]


def _here() -> bool:
    return CPUINFO.is_file() and has_bf16(CPUINFO.read_text())


def _numpy(size: int) -> float:
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    out = np.empty_like(a)
    return _rate(lambda: np.matmul(a, b, out=out), size)


def _torch(size: int, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, size, size), generator=generator).to(dtype)
    out = torch.empty_like(a)
    return _rate(lambda: torch.mm(a, b, out=out), size)


def _cuda(size: int) -> list[Ceiling]:
    """Measure the GPU; its products run one behind the other, so that launching costs nothing."""
    found = []
    before = torch.backends.cuda.matmul.allow_tf32
    for precision, dtype in (('float32', torch.float32), ('tf32', torch.float32),
                             ('float16', torch.float16), ('bf16', torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
        a, b = torch.randn((2, size, size), device='cuda').to(dtype)
        out = torch.empty_like(a)

        def several(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            for _ in range(REPEATS):
                torch.mm(a, b, out=out)
            torch.cuda.synchronize()
        found.append(Ceiling('cuda', precision, REPEATS * _rate(several, size)))
    torch.backends.cuda.matmul.allow_tf32 = before
    return found


def _rate(product: Callable[[], object], size: int) -> float:
    """Return the best rate [GFLOP/s] of a product of square matrices, one warm-up before."""
    product()
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        product()
        spent.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(spent) / 1e9
