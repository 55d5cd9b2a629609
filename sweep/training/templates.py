"""Archives of torch.export with gaps: what networks of one structure have in common.

torch.export takes 60-70 ms to trace a network, 9 ms to serialise it, and 0.15 s to load what both
need. Networks that differ in widths, input statistics and weights alone have archives that differ
in a few numbers and in the weights; so one of them is traced and serialised, and the archives of
the others are filled in: 1 ms.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import platform
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from sweep.datasets import default_cache_dir
from sweep.errors import DiskError
from sweep.trial_files import make_private_folder, replace_file

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/"
WEIGHTS_TABLE = f"{WEIGHTS}model_weights_config.json"
OF_THE_WRITER = (".data/", "byteorder")
"""Records that torch's writer adds by itself."""
SHAPES = ("tensor_values", "tensor_meta")
"""Keys in an archive's JSON below which the sizes and strides of all tensors are."""
UNUSABLE = (ValueError, KeyError, RuntimeError)
"""What `Template` raises."""


class Template:
    """The archive of one structure, with gaps where its numbers and weights go.

    Args:
        archive: What `torch.export.save` wrote for a network of that structure.
        numbers: Those of this network that others have otherwise: integers, which are sizes, and
            floats. No two alike, and none of them also something else's.
        prefix: What the names of weights in the archive begin with.

    Raises:
        ValueError: A number is where none was expected.
        KeyError: An entry is not where it was expected.
        RuntimeError: A record is missing, or `archive` is damaged.
    """

    def __init__(self, archive: bytes | bytearray, numbers: Sequence[float], prefix: str) -> None:
        gaps = {number: f"<number {k}>" for k, number in enumerate(numbers)}
        self._gaps = [json.dumps(gap) for gap in gaps.values()]
        reader = PT2ArchiveReader(io.BytesIO(archive))
        self._texts = {
            record: json.dumps(_with_gaps(json.loads(reader.read_string(record)), gaps))
            for record in (WEIGHTS_TABLE, PROGRAM)
        }
        table = json.loads(reader.read_string(WEIGHTS_TABLE))["config"]
        self._weights = {
            WEIGHTS + meta["path_name"]: name.removeprefix(prefix) for name, meta in table.items()
        }
        self._others = {
            record: reader.read_bytes(record)
            for record in reader.get_file_names()
            if record not in {*self._texts, *self._weights}
            and not record.startswith(OF_THE_WRITER)
        }

    def fill(self, weights: Mapping[str, Tensor], file: Any, numbers: Sequence[float]) -> None:
        """Write the archive of a network of this structure to `file`.

        Args:
            weights: Its state_dict.
            file: Open for writing bytes.
            numbers: In the order of those that the template was made with.
        """
        with PT2ArchiveWriter(file) as writer:
            for record, name in self._weights.items():
                writer.write_bytes(record, _bytes(weights[name]))
            for record, text in self._texts.items():
                for gap, number in zip(self._gaps, numbers, strict=True):
                    text = text.replace(gap, json.dumps(number))
                writer.write_string(record, text)
            for record, content in self._others.items():
                writer.write_bytes(record, content)


def primes(n: int, above: int) -> list[int]:
    """The first `n` primes above `above`.

    As widths they are unmistakable where all other sizes are at most `above`: no product of those,
    as strides are, is equal to one.
    """
    found: list[int] = []
    number = above
    while len(found) < n:
        number += 1
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            found.append(number)
    return found


def cache_file(key: Hashable, sources: Sequence[Path]) -> Path:
    """Where the user's cache has, or is to have, what depends on all this.

    Args:
        key: Whatever it depends on, beside the versions of Python and torch.
        sources: Files of code that it depends on.
    """
    made_by = (platform.python_version(), torch.__version__, key)
    digest = hashlib.blake2b(repr(made_by).encode(), digest_size=16)
    for source in sources:
        digest.update(source.read_bytes())
    return default_cache_dir() / "templates" / digest.hexdigest()


def keep(file: Path, archive: bytes | bytearray) -> None:
    """Put `archive` into the cache, where that can be written."""
    with contextlib.suppress(OSError, DiskError):
        make_private_folder(file.parent)
        replace_file(file, _checksum(archive) + archive, mode=0o600)


def kept(file: Path) -> bytes:
    """What `keep` put there. Raises OSError, ValueError where the file is damaged."""
    content = file.read_bytes()
    n = len(_checksum(b""))
    if content[:n] != _checksum(content[n:]):
        raise ValueError(f"{file} is damaged")
    return content[n:]


def _checksum(content: bytes | bytearray) -> bytes:
    """torch reads archives without looking at their checksums."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _with_gaps(content: Any, gaps: Mapping[float, str], *, is_shape: bool = False) -> Any:
    """JSON with the numbers of `gaps` replaced, integers in tensors' shapes only."""
    if isinstance(content, dict):
        return {
            key: _with_gaps(value, gaps, is_shape=is_shape or key in SHAPES)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_with_gaps(item, gaps, is_shape=is_shape) for item in content]
    if isinstance(content, int | float) and content in gaps:
        if isinstance(content, int) and not is_shape:
            raise ValueError(f"{content} is no size here")
        return gaps[content]
    return content


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
