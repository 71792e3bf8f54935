"""Checkpoints: a folder per step, complete or absent.

    STEP/model.safetensors      weights, tied ones once
    STEP/optimizer.safetensors  optimizer state by parameter name
    STEP/tokenizer.json         the tokenizer travels with the weights
    STEP/meta.json              model config, stage, step, loader state, counters, weights digest, SHA-256 of every other file

Written into a dot-folder, flushed to disk, then renamed: a kill at any moment leaves the previous checkpoint and at most a
dot-folder that the next save removes. Reading checks every hash before anything is used. A `Writer` does it from a copy in host
memory, in a thread, so that a step waits for the copy alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
    """Parameters and persistent buffers (router biases) by name; a tensor with two names appears once, under the first."""
    return {name: t.detach() for name, t in _own(model).items()}


def _own(model: nn.Module) -> dict[str, Tensor]:
    lasting = {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }
    return {**dict(model.named_parameters()), **lasting}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model's own tensors.

    Raises:
        CorruptCheckpoint: names or shapes do not match the model.
    """
    own = _own(model)
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
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


@dataclass(slots=True)
class Draft:
    """What a checkpoint will hold."""

    step: int
    model: ModelConfig
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    tokenizer: str
    meta: Mapping[str, Any]


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
    """Write ROOT/STEP at once; see `write`."""
    return write(root, Draft(step, model.config, own_weights(model), optimizer or {}, tokenizer, meta), keep)


def write(root: Path, draft: Draft, keep: int = 2, forever: int | None = None) -> Path:
    """Write ROOT/STEP and drop all but the newest `keep` checkpoints and those of every `forever`-th step. An existing ROOT/STEP
    is replaced.

    Raises:
        StoreError: disk full or read-only; earlier checkpoints are untouched and nothing half-written stays.
    """
    folder = root / f".tmp-{draft.step:08d}-{os.getpid()}"
    target = root / f"{draft.step:08d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        _write(folder, draft)
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        _flush(root)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"the checkpoint {target} cannot be written: {e}; free some space there and start again") from e
    for old in _folders(root)[keep:]:
        if forever is None or int(old.name) % forever:
            shutil.rmtree(old)
    return target


class Writer:
    """Writes the checkpoints of one run in a thread, from a copy; at most one at a time.

    What goes wrong there is raised by the next call of `check`, `save` or `wait`.
    """

    def __init__(self, root: Path, keep: int = 2, forever: int | None = None) -> None:
        self.root, self.keep, self.forever = root, keep, forever
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._error: BaseException | None = None

    def save(self, draft: Draft) -> None:
        """Copy what the draft holds, once the checkpoint before is on disk, and go on; the caller may change its tensors then.

        Raises:
            StoreError: the checkpoint before could not be written.
        """
        self.wait()
        weights = {name: self._copy(f"weights/{name}", t) for name, t in draft.weights.items()}
        optimizer = {name: self._copy(f"optimizer/{name}", t) for name, t in draft.optimizer.items()}
        if any(t.is_cuda for t in (*draft.weights.values(), *draft.optimizer.values())):  # pragma: no cover - needs CUDA
            torch.cuda.synchronize()
        # The caller goes on counting in its own dictionaries.
        meta = json.loads(json.dumps(draft.meta))
        self._start(Draft(draft.step, draft.model, weights, optimizer, draft.tokenizer, meta))

    def check(self) -> None:
        """Raises: StoreError: the last checkpoint could not be written. Waits for nothing."""
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self) -> Path | None:
        """The newest checkpoint, on disk; None when none was ordered. Raises: StoreError: it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self.wait()

    def _start(self, draft: Draft) -> None:
        def work() -> None:
            try:
                self._path = write(self.root, draft, self.keep, self.forever)
            except BaseException as e:
                self._error = e

        # No daemon: a process that ends in order finishes what it was writing.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor in host memory that is kept for it from one checkpoint to the next."""
        held = self._copies.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held.copy_(tensor, non_blocking=tensor.is_cuda)


def _write(folder: Path, draft: Draft) -> None:
    """All files of a checkpoint, flushed to disk."""
    folder.mkdir()
    weights = {name: t.contiguous() for name, t in draft.weights.items()}
    save_file(weights, folder / "model.safetensors")
    save_file({name: t.contiguous() for name, t in draft.optimizer.items()}, folder / "optimizer.safetensors")
    (folder / "tokenizer.json").write_text(draft.tokenizer, encoding="utf-8")
    names = ("model.safetensors", "optimizer.safetensors", "tokenizer.json")
    body = {
        "format": FORMAT,
        "step": draft.step,
        "model": draft.model.model_dump(mode="json"),
        "weights_digest": weights_digest(weights),
        "meta": dict(draft.meta),
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
