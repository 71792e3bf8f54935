"""Model souping (Wortsman et al., 2022): the weighted mean of checkpoints of one architecture, tensor by tensor.

    theta = theta_0 + sum_i w_i (theta_i - theta_0),   sum_i w_i = 1

which is the weighted sum, and leaves equal checkpoints bit for bit as they are. It is added up in float32 (float64 for float64)
and rounded once. Files are read and written tensor by tensor, so memory holds one of them, never a model.

    python -m trainer.optim.soup TARGET SOURCE SOURCE ... [--weights 0.5 0.5]      checkpoint folders, or .safetensors files
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from gymsmith.errors import UserError
from trainer import checkpoint

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def shares(count: int, weights: Sequence[float] | None) -> list[float]:
    """The weight of each source; equal ones when none are named.

    Raises:
        UserError: another number of weights than sources, or a sum other than 1.
    """
    found = list(weights) if weights else [1 / count] * count
    if len(found) != count or not math.isclose(sum(found), 1, abs_tol=1e-6):
        raise UserError(f"expected {count} weights that sum to 1, got {found}; name one for each source")
    return found


def soup(sources: Sequence[Path], target: Path, weights: Sequence[float] | None = None) -> None:
    """Write the mean of safetensors files to `target`. Tensors of integers must be equal in all.

    Raises:
        UserError: names, shapes or types differ, or the weights are wrong.
    """
    w = shares(len(sources), weights)
    with ExitStack() as stack:
        files: list[Any] = [stack.enter_context(safe_open(path, "pt")) for path in sources]
        tables = [{name: _kind(file, name) for name in file.keys()} for file in files]  # noqa: SIM118
        for path, table in zip(sources, tables, strict=True):
            if table != tables[0]:
                odd = sorted(n for n in table.keys() | tables[0].keys() if table.get(n) != tables[0].get(n))[0]
                got = f"{odd} is {tables[0].get(odd)} in {sources[0]} and {table.get(odd)} in {path}"
                raise UserError(f"expected checkpoints of one architecture, got {got}; leave one of them out")
        header: dict[str, Any] = {"__metadata__": files[0].metadata() or {"format": "pt"}}
        at = 0
        for name, (kind, shape) in tables[0].items():
            size = math.prod(shape) * BYTES[kind]
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with target.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in tables[0]:
                mean = _mean(name, [file.get_tensor(name) for file in files], w)
                out.write(mean.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _mean(name: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        if not all(torch.equal(first, other) for other in tensors):
            raise UserError(f"{name} holds integers, which have no mean, and differs between checkpoints; leave one of them out")
        return first
    wide = first.to(torch.promote_types(first.dtype, torch.float32))
    mean = wide.clone()
    for share, other in zip(weights[1:], tensors[1:], strict=True):
        mean += share * (other.to(wide.dtype) - wide)
    return mean.to(first.dtype)


def _kind(file: Any, name: str) -> tuple[str, tuple[int, ...]]:
    part = file.get_slice(name)
    return part.get_dtype(), tuple(part.get_shape())


def soup_checkpoints(sources: Sequence[Path], root: Path, weights: Sequence[float] | None = None) -> Path:
    """The mean of checkpoint folders as a checkpoint below `root`, with the first one's step, config and tokenizer and no
    optimizer state."""
    first = checkpoint.load(sources[0])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "soup.safetensors"
        soup([path / "model.safetensors" for path in sources], file, weights)
        meta = {"soup": {str(path): w for path, w in zip(sources, shares(len(sources), weights), strict=True)}}
        return checkpoint.write(root, checkpoint.Draft(first.step, first.model, load_file(file), {}, first.tokenizer, meta))


def main(arguments: list[str] | None = None) -> None:
    """Mix checkpoints from the command line."""
    parser = argparse.ArgumentParser(description="The weighted mean of checkpoints of one architecture.")
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--weights", type=float, nargs="*")
    given = parser.parse_args(arguments)
    if given.target.suffix == ".safetensors":
        soup(given.sources, given.target, given.weights)
        print(given.target)
    else:
        print(soup_checkpoints(given.sources, given.target, given.weights))


if __name__ == "__main__":
    main()
