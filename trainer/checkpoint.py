"""Checkpoints: a folder per step, complete or absent.

    STEP/model.safetensors      weights, tied ones once
    STEP/optimizer.safetensors  optimizer state by parameter name
    STEP/tokenizer.json         the tokenizer travels with the weights
    STEP/meta.json              model config, stage, step, loader state, counters, weights digest, SHA-256 of every other file

Written into a dot-folder, flushed to disk, then renamed: a kill at any moment leaves the previous checkpoint and at most a
dot-folder that the next save removes. Reading checks every hash before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gymsmith.errors import CorruptCheckpoint, NotFound, StoreError
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer

log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(slots=True)
class Checkpoint:
    """What a folder holds, verified."""

    path: Path
    model: ModelConfig
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    tokenizer: str
    """The tokenizer's JSON."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Whatever the run wants back: stage, loader state, counters, version."""

    def build(self) -> Transformer:
        """A model with these weights."""
        model = Transformer(self.model)
        load_weights(model, self.weights)
        return model


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; a tensor with two names appears once, under the first."""
    return {name: p.detach() for name, p in model.named_parameters()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model's own tensors.

    Raises:
        CorruptCheckpoint: names or shapes do not match the model.
    """
    own = dict(model.named_parameters())
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise CorruptCheckpoint(f"expected {len(own)} tensors, got {len(weights)}; only on one side: {', '.join(odd[:5])}")
    with torch.no_grad():
        for name, p in own.items():
            if p.shape != weights[name].shape:
                shapes = f"expected shape {tuple(p.shape)}, got {tuple(weights[name].shape)}"
                raise CorruptCheckpoint(f"{name}: {shapes}; the checkpoint is of another model config")
            p.copy_(weights[name])


def weights_digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights, in name order: equal only for bitwise equal models."""
    tensors = own_weights(weights) if isinstance(weights, nn.Module) else weights
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{t.dtype}|{tuple(t.shape)}|".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def save(
    root: Path,
    step: int,
    model: Transformer,
    *,
    optimizer: Mapping[str, Tensor] | None = None,
    tokenizer: str,
    meta: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write ROOT/STEP and drop all but the newest `keep` checkpoints. An existing ROOT/STEP is replaced.

    Raises:
        StoreError: disk full or read-only; earlier checkpoints are untouched and nothing half-written stays.
    """
    folder = root / f".tmp-{step:08d}-{os.getpid()}"
    target = root / f"{step:08d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        _write(folder, step, model, optimizer or {}, tokenizer, meta)
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        _flush(root)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"the checkpoint {target} cannot be written: {e}; free some space there and start again") from e
    for old in _folders(root)[keep:]:
        shutil.rmtree(old)
    return target


def _write(
    folder: Path, step: int, model: Transformer, optimizer: Mapping[str, Tensor], tokenizer: str, meta: Mapping[str, Any]
) -> None:
    """All files of a checkpoint, flushed to disk."""
    folder.mkdir()
    weights = {name: t.contiguous() for name, t in own_weights(model).items()}
    save_file(weights, folder / "model.safetensors")
    save_file({name: t.contiguous() for name, t in optimizer.items()}, folder / "optimizer.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    names = ("model.safetensors", "optimizer.safetensors", "tokenizer.json")
    body = {
        "format": FORMAT,
        "step": step,
        "model": model.config.model_dump(mode="json"),
        "weights_digest": weights_digest(weights),
        "meta": dict(meta),
        "sha256": {name: _sha256(folder / name) for name in names},
    }
    text = json.dumps(body, indent=1, sort_keys=True)
    outer = {"body": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(outer), encoding="utf-8")
    for name in (*names, "meta.json"):
        _flush(folder / name)


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        NotFound: there is no such folder.
        CorruptCheckpoint: names the file that is missing, unreadable or altered.
    """
    if not path.is_dir():
        raise NotFound(f"expected a checkpoint folder, got {path} which is none; list the run's checkpoints")
    meta_file = path / "meta.json"
    reading = meta_file
    try:
        outer = json.loads(meta_file.read_text(encoding="utf-8"))
        if hashlib.sha256(outer["body"].encode()).hexdigest() != outer["sha256"]:
            raise CorruptCheckpoint(f"{meta_file} was altered: its hash does not match; use another checkpoint")
        body = json.loads(outer["body"])
        if body["format"] != FORMAT:
            raise CorruptCheckpoint(f"{meta_file}: expected format {FORMAT}, got {body['format']}; it is from another release")
        for name, expected in body["sha256"].items():
            reading = path / name
            got = _sha256(reading)
            if got != expected:
                raise CorruptCheckpoint(f"{reading}: expected SHA-256 {expected[:16]}, got {got[:16]}; use another checkpoint")
        return Checkpoint(
            path,
            ModelConfig.model_validate(body["model"]),
            int(body["step"]),
            load_file(path / "model.safetensors"),
            load_file(path / "optimizer.safetensors"),
            (path / "tokenizer.json").read_text(encoding="utf-8"),
            body["meta"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise CorruptCheckpoint(f"{reading} cannot be read ({e}); use another checkpoint") from e


def newest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are passed over with a warning. None when there is none at all.

    Raises:
        CorruptCheckpoint: there are checkpoints and every one is damaged.
    """
    folders = _folders(root)
    problem: CorruptCheckpoint | None = None
    for folder in folders:
        try:
            return load(folder)
        except CorruptCheckpoint as e:
            problem = problem or e
            log.warning("checkpoint skipped path=%s reason=%s", folder, e)
    if problem:
        raise CorruptCheckpoint(f"all {len(folders)} checkpoints in {root} are damaged; newest: {problem}; start anew")
    return None


def _folders(root: Path) -> list[Path]:
    """Complete checkpoint folders, newest first."""
    return sorted((p for p in root.glob("[0-9]*") if p.is_dir()), reverse=True) if root.is_dir() else []


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
