"""Reads a Hugging Face folder tensor by tensor, and writes one, in shards where it is large.

What is wrong with a folder is said before anything is built: no config.json, weights in another format, a shard that the index
names and nobody has, a shard that was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gymsmith.errors import ConfigError, CorruptCheckpoint, NotFound, UserError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
SCALE = "_scale_inv"
"""After a weight's name: one factor for each block of it."""
SHARD_BYTES = 5_000_000_000
"""Largest file that is written."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Number formats that are read; others hold quantised weights."""


class Folder:
    """A folder with config.json and safetensors files, verified to be whole."""

    def __init__(self, path: Path) -> None:
        """Raises: NotFound: no folder or no config.json. CorruptCheckpoint: unreadable. UserError: other weights than ours."""
        if not (path / "config.json").is_file():
            raise NotFound(f"expected a folder with a config.json, got {path}, which has none; name a Hugging Face model folder")
        self.path = path
        self.document = self.json("config.json")
        self.shard_of: dict[str, Path] = {}
        for shard in self._shards():
            try:
                with safe_open(shard, "pt") as file:
                    self.shard_of.update(dict.fromkeys(file.keys(), shard))
            except (SafetensorError, OSError) as e:
                size = shard.stat().st_size
                raise CorruptCheckpoint(
                    f"{shard}: expected a whole safetensors file, got {size:,} bytes ({e}); copy it again"
                ) from e

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the folder."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError as e:
            raise CorruptCheckpoint(f"{self.path / name} is not JSON: {e}; copy it again") from e
        if not isinstance(found, dict):
            raise CorruptCheckpoint(f"{self.path / name}: expected a JSON object, got {type(found).__name__}; copy it again")
        return found

    def text(self, name: str) -> str | None:
        """A text file, None where there is none."""
        file = self.path / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def read(self, name: str) -> Tensor:
        """One tensor in float32; FP8 in blocks (DeepSeek-V3's layout) becomes the numbers that it stands for.

        Raises:
            ConfigError: it holds numbers of another format.
        """
        with safe_open(self.shard_of[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
        blocks = (self.document.get("quantization_config") or {}).get("weight_block_size")
        if found.dtype is torch.float8_e4m3fn and blocks and f"{name}{SCALE}" in self.shard_of:
            scale = self.read(f"{name}{SCALE}")
            for dim, block in enumerate(blocks):
                scale = scale.repeat_interleave(block, dim).narrow(dim, 0, found.size(dim))
            return found.float() * scale
        if found.dtype not in FLOATS:
            raise ConfigError(
                f"{name}: expected float32, bfloat16 or float16, got {found.dtype}; save the model in bfloat16 first"
            )
        return found.float()

    def _shards(self) -> list[Path]:
        if (self.path / INDEX).is_file():
            names = sorted(set(self.json(INDEX).get("weight_map", {}).values()))
            gone = [name for name in names if not (self.path / name).is_file()]
            if gone or not names:
                named = ", ".join(gone[:3]) or "none at all"
                raise CorruptCheckpoint(f"{self.path / INDEX} names {len(names)} shards; missing: {named}; copy them too")
            return [self.path / name for name in names]
        if (self.path / ONE).is_file():
            return [self.path / ONE]
        other = sorted(p.name for p in self.path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        raise UserError(
            f"expected {ONE} or {INDEX} in {self.path}, got {other or 'no weights'}; convert the weights to safetensors"
        )


def write_weights(folder: Path, weights: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """model.safetensors, or shards with an index; tensors in name order."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / ONE, metadata={"format": "pt"})
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
    total = sum(t.nbytes for t in weights.values())
    body = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
