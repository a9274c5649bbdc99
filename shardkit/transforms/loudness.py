"""How loud a sound is to the ear: ITU-R BS.1770-4 integrated loudness, in numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["loudness"]

_BLOCK_S, _STEP_S = 0.4, 0.1  # BS.1770-4: blocks of 400 ms that overlap by 75 %
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
_TAIL_S = 0.5  # the filter has died away by then


def loudness(samples: npt.NDArray[np.float32], rate: int) -> float:
    """Measure integrated loudness in LUFS; ``-inf`` for silence.

    Args:
        samples: float ``[channels, time]``, in the order L, R, C, LFE, Ls, Rs.
        rate: in Hz. Sounds shorter than 0.4 s are measured as one block.
    """
    num_channels, length = samples.shape
    if length == 0:
        return -np.inf
    power = _k_weighted(samples, rate) ** 2
    weights = np.array([1, 1, 1, 0, 1.41, 1.41] + [1.0] * num_channels)[:num_channels]
    if num_channels < 4:
        weights[:] = 1
    sums = np.concatenate([[0.0], np.cumsum(weights @ power)])
    block = min(round(_BLOCK_S * rate), length)
    starts = np.arange(0, length - block + 1, max(1, round(_STEP_S * rate)))
    blocks = (sums[starts + block] - sums[starts]) / block
    blocks = blocks[_lufs(blocks) > _ABSOLUTE_GATE]
    if not len(blocks):
        return -np.inf
    gate = float(_lufs(blocks.mean())) + _RELATIVE_GATE
    return float(_lufs(blocks[_lufs(blocks) > gate].mean()))


def _lufs(power: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(-0.691 + 10 * np.log10(power))


def _k_weighted(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float64]:
    """Filter by the head's shelf and the low cut, as one product of spectra."""
    length = samples.shape[1]
    size = 1 << int(np.ceil(np.log2(length + _TAIL_S * rate)))
    z = np.exp(-1j * np.linspace(0, np.pi, size // 2 + 1))
    response = _shelf(rate, z) * _low_cut(rate, z)
    return np.asarray(np.fft.irfft(np.fft.rfft(samples, size) * response, size)[:, :length])


def _shelf(rate: int, z: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """+4 dB above 1.7 kHz; analogue prototype of the table for 48 kHz (De Man, 2018)."""
    k = np.tan(np.pi * 1681.974450955533 / rate)
    q, high = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    mid = high**0.4996667741545416
    numerator = np.array(
        [high + mid * k / q + k * k, 2 * (k * k - high), high - mid * k / q + k * k]
    )
    return _biquad(numerator, k, q, z)


def _low_cut(rate: int, z: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """Second-order high-pass at 38 Hz."""
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    scale = 1 + k / q + k * k  # the standard leaves the numerator at 1, -2, 1
    return _biquad(np.array([1.0, -2.0, 1.0]) * scale, k, q, z)


def _biquad(
    numerator: npt.NDArray[np.float64], k: float, q: float, z: npt.NDArray[np.complex128]
) -> npt.NDArray[np.complex128]:
    below = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    over = numerator[0] + numerator[1] * z + numerator[2] * z * z
    return np.asarray(over / (below[0] + below[1] * z + below[2] * z * z))
