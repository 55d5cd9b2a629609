"""Archives of torch.export with gaps: what networks of one structure have in common.

torch.export takes 60-70 ms to trace a network, 9 ms to serialise it, and 0.15 s to load what both
need. Networks that differ in widths, input statistics and weights alone have archives that differ
in a few numbers and in the weights; so one of them is traced and serialised, and the archives of
the others are filled in: 1 ms.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweep import cache

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/"
WEIGHTS_TABLE = f"{WEIGHTS}model_weights_config.json"
ZIP_VERSION = 6
"""What PT2ArchiveWriter asks for: of torch's zip files, not of what is in them."""
OF_THE_WRITER = (".data/", "byteorder")
"""Records that torch's writer adds by itself."""
SHAPES = ("tensor_values", "tensor_meta")
"""Keys in an archive's JSON below which the sizes and strides of all tensors are."""


class UnknownFormatError(Exception):
    """What torch wrote is not as it was when this was written."""


@dataclass(frozen=True, slots=True)
class Template:
    """The archive of one structure, with gaps where its numbers and weights go."""

    texts: Mapping[str, str]
    """Records that have gaps."""
    weights: Mapping[str, str]
    """Records that are weights: their names in a state_dict."""
    others: Mapping[str, bytes]
    """Records that are the same for all."""

    @classmethod
    def of(cls, archive: bytes | bytearray, numbers: Sequence[float], prefix: str) -> Template:
        """What is left of `archive`, which `torch.export.save` wrote for one network.

        Args:
            archive: Of a network of that structure.
            numbers: Those of this network that others have otherwise: integers, which are sizes,
                and floats. No two alike, and none of them also something else's.
            prefix: What the names of weights in the archive begin with.

        Raises:
            UnknownFormatError: A number is nowhere, or where none was expected; a record is
                missing.
        """
        from torch.export.pt2_archive import PT2ArchiveReader

        gaps = {number: _gap(k) for k, number in enumerate(numbers)}
        try:
            reader = PT2ArchiveReader(io.BytesIO(archive))
            contents = {
                record: json.loads(reader.read_string(record))
                for record in (WEIGHTS_TABLE, PROGRAM)
            }
            texts = {name: json.dumps(_with_gaps(c, gaps)) for name, c in contents.items()}
            weights = {
                WEIGHTS + meta["path_name"]: name.removeprefix(prefix)
                for name, meta in contents[WEIGHTS_TABLE]["config"].items()
            }
            others = {
                record: reader.read_bytes(record)
                for record in reader.get_file_names()
                if record not in {*texts, *weights} and not record.startswith(OF_THE_WRITER)
            }
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            raise UnknownFormatError(str(error)) from error
        if not all(json.dumps(gap) in texts[PROGRAM] for gap in gaps.values()):
            raise UnknownFormatError("a number is not in the program")
        return cls(texts, weights, others)

    def fill(self, weights: Mapping[str, Tensor], file: Any, numbers: Sequence[float]) -> None:
        """Write the archive of a network of this structure to `file`.

        Args:
            weights: Its state_dict.
            file: Open for writing bytes.
            numbers: In the order of those that the template was made with.
        """
        # What PT2ArchiveWriter wraps, and torch.save, too; the wrapper's module loads sympy and
        # torch's compiler, 0.5 s.
        writer = torch._C.PyTorchFileWriter(file)
        writer.set_min_version(ZIP_VERSION)

        def write(record: str, content: bytes) -> None:
            writer.write_record(record, content, len(content))

        for record, name in self.weights.items():
            write(record, _bytes(weights[name]))
        for record, text in self.texts.items():
            for k, number in enumerate(numbers):
                text = text.replace(json.dumps(_gap(k)), json.dumps(number))
            write(record, text.encode())
        for record, content in self.others.items():
            write(record, content)
        writer.write_end_of_file()

    def keep(self, file: Path | None) -> None:
        """Write it to `file` in the user's cache, where that can be written."""
        others = {
            name: base64.b85encode(content).decode() for name, content in self.others.items()
        }
        cache.keep(file, json.dumps([self.texts, self.weights, others]).encode())

    @classmethod
    def kept(cls, file: Path | None) -> Template | None:
        """What `keep` wrote there; None where that is missing, damaged or somebody else's."""
        content = cache.kept(file)
        if content is None:
            return None
        texts, weights, others = json.loads(content)
        return cls(texts, weights, {name: base64.b85decode(text) for name, text in others.items()})


def unmistakable(n: int, others: Collection[int]) -> list[int]:
    """`n` primes above 100 that are none of `others`, nor a product of them, as strides are."""
    found: list[int] = []
    number = 100
    while len(found) < n:
        number += 1
        is_prime = all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
        if is_prime and number not in others:
            found.append(number)
    return found


def sources_digest(sources: Sequence[str]) -> str | None:
    """A digest of files of code, as they are now; None where they cannot be read."""
    try:
        return hashlib.blake2b(b"".join(Path(s).read_bytes() for s in sources)).hexdigest()
    except OSError:
        return None


def _gap(k: int) -> str:
    return f"<number {k}>"


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
