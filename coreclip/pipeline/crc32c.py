"""CRC-32C (Castagnoli; RFC 3720, appendix B.4) by slicing-by-8, compiled, and its masked form of TFRecord files."""

import numpy as np
from numba import njit

_POLYNOMIAL = 0x82F63B78  # reversed
_MASK_DELTA = 0xA282EAD8


def _make_tables() -> np.ndarray:
    """Return what a byte does to the sum when 0..7 bytes follow it, uint32 (8, 256)."""
    tables = np.zeros((8, 256), np.uint32)
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1).astype(np.uint32)
    tables[0] = values
    for k in range(1, 8):
        tables[k] = tables[0][tables[k - 1] & 0xFF] ^ (tables[k - 1] >> 8)
    return tables


_TABLES = _make_tables()


@njit(cache=True, nogil=True)
def _crc(data: np.ndarray, tables: np.ndarray) -> np.uint32:
    crc = np.uint32(0xFFFFFFFF)
    n = len(data)
    whole = n - n % 8
    for i in range(0, whole, 8):
        low = crc ^ (
            np.uint32(data[i])
            | np.uint32(data[i + 1]) << np.uint32(8)
            | np.uint32(data[i + 2]) << np.uint32(16)
            | np.uint32(data[i + 3]) << np.uint32(24)
        )
        crc = (
            tables[7, low & np.uint32(0xFF)]
            ^ tables[6, (low >> np.uint32(8)) & np.uint32(0xFF)]
            ^ tables[5, (low >> np.uint32(16)) & np.uint32(0xFF)]
            ^ tables[4, low >> np.uint32(24)]
            ^ tables[3, data[i + 4]]
            ^ tables[2, data[i + 5]]
            ^ tables[1, data[i + 6]]
            ^ tables[0, data[i + 7]]
        )
    for i in range(whole, n):
        crc = tables[0, (crc ^ data[i]) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    return crc ^ np.uint32(0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of ``data``."""
    return int(_crc(np.frombuffer(data, np.uint8), _TABLES))


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C as TFRecord files store it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
