"""Rows of the trainer's machinery: memory of the head, loader, packing, checkpoint stall, kills, parity with transformers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gymsmith.bench import Row
from trainer import checkpoint
from trainer.checkpoint import Draft, Writer
from trainer.data.deck import Deck
from trainer.data.mix import Mix, Phase
from trainer.data.packing import best_fit_rows
from trainer.data.shards import Shards, ShardWriter
from trainer.data.stream import Stream
from trainer.model.config import MemoryConfig, ModelConfig
from trainer.model.head import head_loss
from trainer.model.transformer import Transformer
from trainer.survival import survive


def machinery(home: Path, quick: bool) -> list[Row]:
    """All of them; `home` is for files."""
    rows = head_memory(quick)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        rows += [
            *loader(Path(folder), quick),
            packing(quick),
            *stall(Path(folder), quick),
            *kills(Path(folder), 8 if quick else 50),
        ]
    return [*rows, *parity()]


# -------------------------------------------------------- memory


def head_memory(quick: bool) -> list[Row]:
    """Peak resident memory of head and loss, forward and backward, in pieces and at once; each in a process of its own."""
    V, T, chunk = (32768, 2048, 512) if quick else (131072, 4096, 256)
    peaks, losses = {}, {}
    for pieces in (chunk, 0):
        command = [sys.executable, "-m", "trainer.bench.machinery", str(V), str(T), str(pieces)]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks[pieces], losses[pieces] = said["bytes"], said["loss"]
    model = chunk * V * 4
    ratio, same = peaks[chunk] / model, abs(losses[chunk] - losses[0]) <= 1e-6 * abs(losses[0])
    name = f"head of {V} words, {T} positions"
    return [
        Row(
            f"{name}: peak in pieces of {chunk}",
            "MiB",
            peaks[chunk] / 2**20,
            model / 2**20,
            "one piece's logits",
            ratio,
            "<= 1.15",
            ratio <= 1.15,
        ),
        Row(f"{name}: at once", "MiB", peaks[0] / 2**20, peaks[chunk] / 2**20, "in pieces", peaks[0] / peaks[chunk]),
        Row(f"{name}: loss against at once", "relative", abs(losses[chunk] / losses[0] - 1), bar="<= 1e-6", ok=same),
    ]


def _head(V: int, T: int, chunk: int) -> dict[str, float]:
    """Growth of resident memory over one head loss and its backward pass, less the head's own gradient, which any form needs."""
    torch.set_num_threads(1)
    D = 32
    model = Transformer(ModelConfig(vocab_size=V, dim=D, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, ffn_dim=32))
    model.memory = MemoryConfig(head_chunk=chunk)
    hidden = torch.randn(1, T, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets, weights = torch.arange(T)[None] % V, torch.ones(1, T)

    def work(n: int) -> float:
        loss = head_loss(model, hidden[:, :n], targets[:, :n], weights[:, :n]).total / n
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    # Libraries load and gradients come into being.
    work(8)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    loss = work(T)
    return {"bytes": _resident("VmHWM") - before - V * D * 4, "loss": loss}


def _resident(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM since the mark was last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# -------------------------------------------------------- data


def loader(folder: Path, quick: bool) -> list[Row]:
    """Tokens per CPU-second from mapped, shuffled shards to packed batches; a plain scan of the same file beside it."""
    rng, tokens = np.random.default_rng(0), 4_000_000 if quick else 24_000_000
    lengths = np.clip(rng.lognormal(6, 1, tokens // 500).astype(int), 16, 4096)
    with ShardWriter(folder / "shards", 65536) as writer:
        for n in lengths:
            writer.add(rng.integers(0, 65536, n))
    total = int(lengths.sum())
    batches = total // (8 * 4096) - 2
    stream = Stream(Mix({"a": Deck("a", Shards(folder / "shards"), 1)}, [Phase(batches, 8, 4096, {"a": 1.0})], 1))
    started = time.process_time()
    seen = filled = 0
    for _ in range(batches):
        batch = stream.next()
        seen, filled = seen + batch.ids.numel(), filled + batch.tokens
    seconds = time.process_time() - started
    stream.close()
    file = next(
        (folder / "shards").rglob("*.bin"), next(p for p in (folder / "shards").iterdir() if p.stat().st_size > 2 * total // 2)
    )
    started = time.process_time()
    np.fromfile(file, np.uint16).astype(np.int64).sum()
    scan = file.stat().st_size / 2 / (time.process_time() - started)
    rate, waste = filled / seconds, 1 - filled / seen
    return [
        Row(
            "loader: shuffled, packed, one core",
            "Mtok/CPU-s",
            rate / 1e6,
            scan / 1e6,
            "reading the file to int64",
            rate / scan,
            ">= 5 Mtok",
            rate >= 5e6,
        ),
        Row("loader: padding of packed rows", "share", waste, bar="<= 0.005", ok=waste <= 0.005),
    ]


def packing(quick: bool) -> Row:
    """Best fit of documents into rows of 8,192."""
    count = 100_000 if quick else 1_000_000
    lengths = np.clip(np.random.default_rng(1).lognormal(6, 1.2, count).astype(np.int64), 1, 8192)
    started = time.thread_time()
    best_fit_rows(lengths, 8192)
    seconds = (time.thread_time() - started) * 1_000_000 / count
    return Row("packing a million documents", "CPU-s", seconds, bar="<= 5", ok=seconds <= 5)


# -------------------------------------------------------- checkpoints


def stall(folder: Path, quick: bool) -> list[Row]:
    """How long `save` holds the loop up, against copying the same tensors."""
    model = Transformer(ModelConfig(vocab_size=512, dim=128 if quick else 512, n_layers=6, ffn_dim=1536, head_dim=64))
    state = checkpoint.own_weights(model)
    moments = {f"{name}/{key}": torch.ones_like(t) for name, t in state.items() for key in ("exp_avg", "exp_avg_sq")}
    copies = {name: torch.empty_like(t) for name, t in {**state, **moments}.items()}
    held, copied = [], []
    with Writer(folder / "stall", keep=1) as writer:
        for step in range(7):
            writer.wait()
            started = time.thread_time()
            writer.save(Draft(step, model.config, state, moments, "{}", {}))
            held.append(time.thread_time() - started)
            writer.wait()
            started = time.thread_time()
            for name, t in {**state, **moments}.items():
                copies[name].copy_(t)
            copied.append(time.thread_time() - started)
    ours, peer = (1e3 * statistics.median(values[1:]) for values in (held, copied))
    return [
        Row(
            "checkpoint: the loop stands still",
            "CPU-ms",
            ours,
            peer,
            "copying the tensors",
            ours / peer,
            "<= 1.2",
            ours / peer <= 1.2,
        )
    ]


def kills(folder: Path, count: int) -> list[Row]:
    """SIGKILL at random moments, again and again: every step as often as it was done, and the weights, as in the unbroken run."""
    found = survive(folder / "kills", count)
    metric = f"{found.kills} SIGKILLs in {found.steps} steps, {found.repeated} done again"
    return [
        Row(metric, "equal", float(found.equal), 1.0, f"unbroken run {found.difference}".strip(), None, "bitwise", found.equal)
    ]


# -------------------------------------------------------- parity


def parity() -> list[Row]:
    """Largest difference of logits over all families, float64, in the mode that follows the oracles' own casts."""
    try:
        from trainer.hf import families, oracles
    except ImportError as error:
        return [Row("parity with transformers", "", 0.0, None, f"transformers missing: {error}")]
    ids = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0))
    worst = {}
    for family in families.FAMILIES:
        theirs = oracles.oracle(family, torch.float64)
        ours = oracles.mirror(theirs, torch.float64)
        ours.follow_oracle()
        with torch.no_grad():
            worst[family] = float((ours(ids) - theirs(input_ids=ids).logits).abs().max())
    name = max(worst, key=lambda family: worst[family])
    ok = worst[name] <= 1e-10
    return [
        Row(
            f"parity, {len(worst)} families: largest logit difference",
            "float64",
            worst[name],
            None,
            f"transformers, {name}",
            None,
            "<= 1e-10",
            ok,
        )
    ]


if __name__ == "__main__":
    print(json.dumps(_head(*map(int, sys.argv[1:4]))))
