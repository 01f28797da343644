"""Random sequences for planners: uniform, truncated white, or correlated in time."""

import numpy as np
from scipy.special import ndtr, ndtri


class UniformNoise:
    """
    Sequences of independent numbers from [0, 1).

    Parameters
    ----------
    generator : numpy Generator
        Seeded by the caller.
    horizon, size : int
        H and A.

    """

    def __init__(self, generator: np.random.Generator, horizon: int, size: int) -> None:
        self._generator, self._shape = generator, (horizon, size)

    def draw(self, count: int) -> np.ndarray:
        """Return `count` sequences, shape (count, H, A)."""
        return self._generator.random((count, *self._shape))


class TruncatedNoise(UniformNoise):
    """
    White noise from a standard normal cut at +-2, of variance 0.774.

    Notes
    -----
    Source: Chua et al. 2018 (PETS), arXiv:1805.12114.

    """

    def draw(self, count: int) -> np.ndarray:
        """Return `count` sequences, shape (count, H, A)."""
        low, high = ndtr(-2.0), ndtr(2.0)
        return ndtri(low + (high - low) * super().draw(count))


class ColoredNoise:
    """
    Normal noise of unit variance, correlated in time.

    Parameters
    ----------
    generator : numpy Generator
        Seeded by the caller.
    horizon, size : int
        H and A.
    exponent : float
        Power spectrum f^-exponent: 0 is white, 2 a random walk's.

    Notes
    -----
    Sources: Pinneri et al. 2020 (iCEM), arXiv:2008.06389; Timmer and Koenig 1995 for noise from a
    shaped spectrum.

    """

    def __init__(self, generator: np.random.Generator, horizon: int, size: int,
                 exponent: float) -> None:
        self._generator, self._size = generator, size
        self._basis = _basis(horizon, exponent)

    def draw(self, count: int) -> np.ndarray:
        """Return `count` sequences, shape (count, H, A)."""
        white = self._generator.standard_normal((count, self._size, len(self._basis)))
        # Sums over a sequence round by its layout, which every noise therefore shares.
        return np.ascontiguousarray((white @ self._basis).transpose(0, 2, 1))


def _basis(steps: int, exponent: float) -> np.ndarray:
    """Return the sines and cosines, shape (H, H), whose normal sums have the spectrum."""
    frequency = np.fft.rfftfreq(steps)
    frequency[0] = frequency[1] if steps > 1 else 1.0  # the mean shares the lowest scale
    amplitude = frequency ** (-exponent / 2.0)
    # A real signal has real coefficients at zero and, for even length, at the last frequency.
    edges = [0, -1] if steps % 2 == 0 else [0]
    real = amplitude.copy()
    real[edges] *= np.sqrt(2.0)
    imaginary = np.diag(1j * amplitude)
    coefficients = np.concatenate([np.diag(real), np.delete(imaginary, edges, axis=0)])
    # Parseval: inner frequencies count twice, each with a variance of 2 amplitude^2.
    power = 4.0 * np.sum(amplitude**2) - 2.0 * np.sum(amplitude[edges] ** 2)
    waves: np.ndarray = np.fft.irfft(coefficients, n=steps, axis=-1)
    return waves * steps / np.sqrt(power)
