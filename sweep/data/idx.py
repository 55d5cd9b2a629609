"""IDX, the file format of MNIST: unsigned bytes behind a small header, gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import DataError

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray


def read_idx(path: Path, n_dims: int) -> NDArray[uint8]:
    """The array of unsigned bytes in an IDX file, gzipped or not, with `n_dims` axes.

    Format: two zero bytes, 0x08 for unsigned bytes, the number of axes, each axis' length as
    big-endian uint32, then the data in C order (http://yann.lecun.com/exdb/mnist/).

    Raises DataError with the file and its fault.
    """
    import numpy as np

    content = read_bytes(path)
    magic, start = bytes([0, 0, 8, n_dims]), 4 + 4 * n_dims
    if content[:4] != magic or len(content) < start:
        got = content[:4].hex(" ") or "nothing"
        raise damaged(path, f"not IDX: it must begin with {magic.hex(' ')}, got {got}")
    shape = struct.unpack(f">{n_dims}I", content[4:start])
    n_bytes = math.prod(shape)
    if len(content) - start != n_bytes:
        raise damaged(path, f"{len(content) - start} bytes where {shape} needs {n_bytes}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """The file's content, decompressed if it is gzip. Raises DataError."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except EOFError as error:
        raise damaged(path, "the compressed data ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, f"not decompressible ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def damaged(path: Path, fault: str) -> DataError:
    """The error for a damaged file, with the remedy."""
    return DataError(f"{path} is damaged: {fault}; delete it and fetch it again")
