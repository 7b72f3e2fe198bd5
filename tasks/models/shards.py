"""Weights on disk, tensor by tensor: what a checkpoint holds, and how another is written with one shard in memory.

Files are mapped, so that a tensor costs memory only while it is used.
"""

import ctypes
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.errors import InputError
from tasks.models.model_files import read_json, write_json
from tasks.models.safe_loading import require_safetensors

SAFETENSORS = ".safetensors"
INDEX = ".index.json"
NUM_SHOWN = 8


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    key: str  # its name in the file
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Of its numbers, on disk as in memory."""
        return self.outline().nbytes

    def outline(self) -> Tensor:
        """A tensor of this shape and type that holds nothing."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self) -> Tensor:
        """The tensor; its memory is the file's, mapped."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.key)


def weights_in(folder: Path, stem: str) -> dict[str, Stored]:
    """Every tensor of STEM.safetensors, or of the shards that STEM.safetensors.index.json lists; empty for neither.

    Raises InputError, naming the tensors or files, if index and files disagree.
    """
    if (folder / (stem + SAFETENSORS)).is_file():
        return _tensors_of(folder / (stem + SAFETENSORS))
    index = folder / (stem + SAFETENSORS + INDEX)
    return _tensors_of_index(index) if index.is_file() else {}


def write_shards(
    folder: Path, outlines: Mapping[str, Tensor], make: Callable[[str], Tensor], max_shard_size: str | int, stem: str
) -> None:
    """Write the tensors that `make` gives for the names of `outlines` (meta tensors), one shard in memory at a time.

    Each shard is read again and compared bit by bit before the next is made. Raises OSError where it differs.
    """
    _give_freed_memory_back()
    pattern = f"{stem}{{suffix}}{SAFETENSORS}"
    plan = split_torch_state_dict_into_shards(dict(outlines), filename_pattern=pattern, max_shard_size=max_shard_size)
    for filename, names in plan.filename_to_tensors.items():
        _write_shard(folder / filename, _made({name: outlines[name] for name in names}, make))
    if plan.is_sharded:
        content = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{stem}{SAFETENSORS}{INDEX}", content)


def main_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """The precision that most of the floating-point numbers have."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += tensor.size_bytes
    return sizes.most_common(1)[0][0]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are of one type and shape and agree in every bit; a NaN equals itself."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))


def listed(names: Iterable[str]) -> str:
    """The names in order, the first few of them if they are many."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - NUM_SHOWN} more" if len(ordered) > NUM_SHOWN else ""
    return ", ".join(ordered[:NUM_SHOWN]) + rest


def _give_freed_memory_back() -> None:
    """Let glibc map every block from 1 MiB on by itself: else it keeps freed ones in a heap that grows by its holes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)


def _made(outlines: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """What `make` gives, in memory that is taken before: what it needs itself falls free for the next tensor."""
    tensors = {name: torch.empty_like(outline, device="cpu") for name, outline in outlines.items()}
    for name, tensor in tensors.items():
        made = make(name)
        assert (made.shape, made.dtype) == (tensor.shape, tensor.dtype), name
        tensor.copy_(made)
    return tensors


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path, metadata={"format": "pt"})
    written = _tensors_of(path)
    differing = [name for name, tensor in tensors.items() if not same_bits(written[name].read(), tensor)]
    if differing:
        raise OSError(f"{path} gives back other bits than were written: {listed(differing)}. Check the disk.")


def _tensors_of(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {
                key: Stored(path, key, tuple(part.get_shape()), _dtype_of(part.get_dtype(), path))
                for key, part in slices.items()
            }
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file ({error}). It is damaged: fetch or make it again.") from error


def _tensors_of_index(index: Path) -> dict[str, Stored]:
    require_safetensors(index.parent)
    weight_map = read_json(index)["weight_map"]
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise InputError(f"{index} lists shards that are not there: {listed(absent)}. Fetch them again.")
    found = {key: stored for path in files for key, stored in _tensors_of(path).items()}
    missing, extra = weight_map.keys() - found.keys(), found.keys() - weight_map.keys()
    if missing or extra:
        raise InputError(
            f"{index} and its shards disagree: missing in the shards: {listed(missing) or 'none'}; not in the index: "
            f"{listed(extra) or 'none'}. The files are of different checkpoints: fetch or make them again."
        )
    return {key: found[key] for key in weight_map}


def _dtype_of(name: str, path: Path) -> torch.dtype:
    try:
        return _DTYPES[name]
    except KeyError:
        raise InputError(f"{path}: the type {name} of a tensor is not known; expected {', '.join(_DTYPES)}.") from None


_M_MMAP_THRESHOLD = -3  # malloc.h
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
