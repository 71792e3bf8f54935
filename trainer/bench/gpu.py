"""`gymsmith bench trainer --gpu`: the trainer on one accelerator, everything in one call of at most ten minutes.

    python -m trainer.bench.gpu

The matrix ceiling is measured in the same call as everything that is compared with it. Medians of steps after a warm-up; MFU on
the PaLM count and the data sheet, with the causal count and the measured ceiling beside it. A part that cannot run (no
Transformer Engine, compilation that fails, memory that is too small) is a row that says why; without a GPU that is all there
is. The same functions run at tiny size on a CPU in the tests, which proves their logic and no number.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gymsmith.bench import Row, show
from gymsmith.config import Settings
from gymsmith.errors import ConfigError
from trainer.config import OptimConfig, PrecisionConfig, load_recipe
from trainer.data.packing import Batch
from trainer.model.config import LayerKind, MemoryConfig, MLAConfig, ModelConfig
from trainer.model.head import head_loss
from trainer.model.transformer import Transformer
from trainer.monitor.speed import datasheet, matmul_ceiling
from trainer.optim.groups import Optimizers
from trainer.plan.flops import flops, parameters
from trainer.precision import fp8_te
from trainer.precision.convert import Converted, convert


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is; the defaults are for one H100."""

    dense: ModelConfig
    large: ModelConfig
    moe: ModelConfig
    rows: int = 4
    length: int = 4096
    long: int = 16384
    steps: int = 20
    warm: int = 5
    compared: int = 200
    """Steps after which losses of two formats are compared."""
    exact: int = 50
    """Steps of the determinism check."""
    matmul: int = 8192
    compile: bool = True
    head_chunk: int = 4096

    @classmethod
    def full(cls, memory_bytes: float) -> Sizes:
        """One GPU: 1B and 3B dense, 1B-active MoE. Masters, gradients and AdamW's moments are float32, 16 bytes a parameter, so
        all 64 experts fit on a GPU of 120 GB and more, and 24 of them on one of 80."""
        dense = load_recipe("1b").model
        large = dense.model_copy(update={"dim": 3072, "n_layers": 24, "n_heads": 24, "n_kv_heads": 8, "head_dim": 128})
        moe = load_recipe("1b-moe").model
        if memory_bytes < 120e9:
            moe = moe.model_copy(update={"moe": moe.moe.model_copy(update={"experts": 24})})
        return cls(dense, large, moe)

    @classmethod
    def tiny(cls) -> Sizes:
        """For the tests."""
        small = {"vocab_size": 256, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 128}
        dense = ModelConfig(**small, max_positions=64, tied_head=True)  # type: ignore[arg-type]
        moe = load_recipe("1b-moe").model
        experts = moe.moe.model_copy(update={"experts": 4, "top_k": 2, "dim": 32, "shared_dim": 32})
        layers = {"pattern": (LayerKind(window=8, ffn="moe"), LayerKind(position="none", ffn="moe")), "first_layers": ()}
        mixed = moe.model_copy(update={**small, **layers, "moe": experts, "max_positions": 64})
        return cls(dense, dense, mixed, 2, 32, 64, 2, 1, 4, 3, 64, False, 16)


@dataclass(slots=True)
class Bench:
    """One device and what was measured on it so far."""

    device: torch.device
    sizes: Sizes
    rows: list[Row] = field(default_factory=list)
    drawn: Transformer = field(default_factory=lambda: Transformer(ModelConfig(vocab_size=2)))
    drawn_config: ModelConfig | None = None
    """The last fresh model, on the CPU."""
    ceiling: float = math.nan
    sheet: float = math.nan

    # -------------------------------------------------------- tools

    def clock(self) -> float:
        """Seconds, with everything that was ordered from the device done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], Any], steps: int | None = None) -> float:
        """Median seconds of a call after a warm-up."""
        for _ in range(self.sizes.warm):
            work()
        taken = []
        for _ in range(steps or self.sizes.steps):
            started = self.clock()
            work()
            taken.append(self.clock() - started)
        return statistics.median(taken)

    def row(self, metric: str, unit: str, value: float, **rest: Any) -> None:
        self.rows.append(Row(metric, unit, value, **rest))

    def missing(self, metric: str, why: BaseException | str) -> None:
        """A part that did not run, and why; no number is claimed."""
        said = why if isinstance(why, str) else f"{type(why).__name__}: {str(why).splitlines()[0] if str(why) else ''}"
        self.rows.append(Row(metric, "", math.nan, None, f"not measured: {said[:110]}"))

    def part(self, metric: str, work: Callable[[], None]) -> None:
        """Run a part; what it lacks is a row. Memory is given back whatever happens."""
        try:
            work()
        except (ConfigError, ImportError, RuntimeError, NotImplementedError) as error:
            self.missing(metric, error)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def batches(self, config: ModelConfig, rows: int, length: int, seed: int = 0) -> Iterator[Batch]:
        """Rows of one document; bytes of a fixed first-order chain, so that there is something to learn."""
        draws = torch.Generator().manual_seed(seed)
        rule = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(1))
        while True:
            ids = torch.randint(0, config.vocab_size, (rows, length + 1), generator=draws)
            follow = torch.rand(rows, length, generator=draws) < 0.5
            even, odd = ids[:, :-1:2], ids[:, 1::2]
            ids[:, 1::2] = torch.where(follow[:, : odd.size(1)], rule[even[:, : odd.size(1)]], odd)
            positions = torch.arange(length).expand(rows, -1)
            documents = torch.arange(rows)[:, None].expand(-1, length)
            yield Batch(ids[:, :-1], ids[:, 1:], torch.ones(rows, length), positions, documents, {}).to(self.device)

    def model(self, config: ModelConfig, precision: PrecisionConfig, compiled: bool = True) -> tuple[Transformer, Converted]:
        """A fresh model on the device, converted, its blocks compiled one by one."""
        if config != self.drawn_config:
            # Drawing a billion weights by name takes seconds, copying them does not.
            self.drawn_config, self.drawn = config, Transformer(config, 0)
        model = copy.deepcopy(self.drawn).to(self.device)
        model.memory = MemoryConfig(head_chunk=self.sizes.head_chunk)
        converted = convert(model, precision)
        if compiled and self.sizes.compile:
            for block in model.blocks:
                block.compile()
        return model, converted

    def trainer(
        self, config: ModelConfig, precision: PrecisionConfig, length: int, optim: OptimConfig | None = None, fixed: bool = True
    ) -> Callable[[], float]:
        """One training step: the loop's own parts, whole rows (no document mask), loss on the device until it is asked for."""
        model, converted = self.model(config, precision)
        adam = optim or OptimConfig(
            hidden="adamw", lr=3e-4, adam_lr=3e-4, adam_kernel="fused" if self.device.type == "cuda" else "auto"
        )
        optimizers, source = (
            Optimizers(model, adam),
            self.batches(config, max(1, self.sizes.rows * self.sizes.length // length), length),
        )
        held = next(source)

        def step() -> float:
            batch = held if fixed else next(source)
            with converted.running():
                # Whole rows: no document mask, so attention is the fused causal kernel.
                out = model.outputs(batch.ids, batch.positions)
                loss = head_loss(model, out.hidden, batch.targets, batch.weights).total / batch.ids.numel()
                loss = loss + sum(out.losses.values())
            loss.backward()  # type: ignore[no-untyped-call]
            value = float(loss.detach())
            optimizers.step(1.0, value)
            model.after_step()
            converted.after_step()
            return value

        return step

    # -------------------------------------------------------- parts

    def ceilings(self) -> None:
        """What a matrix product reaches here and now; every share below is of this."""
        n = self.sizes.matmul
        self.ceiling = matmul_ceiling(self.device, torch.bfloat16, n)
        if self.device.type == "cuda":
            self.sheet = datasheet(torch.cuda.get_device_name(self.device))
        self.row(
            f"matmul bf16 {n}^3",
            "TFLOP/s",
            self.ceiling / 1e12,
            peer=self.sheet / 1e12,
            peer_name="data sheet",
            ratio=self.ceiling / self.sheet,
        )

        def eight() -> None:
            a = torch.randn(n, n, device=self.device).to(torch.float8_e4m3fn)
            b = torch.randn(n, n, device=self.device).to(torch.float8_e4m3fn).t()
            one = torch.ones((), device=self.device)
            taken = self.seconds(lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
            speed = 2 * n**3 / taken
            self.row(
                f"matmul fp8 {n}^3, _scaled_mm",
                "TFLOP/s",
                speed / 1e12,
                peer=self.ceiling / 1e12,
                peer_name="bf16",
                ratio=speed / self.ceiling,
            )

        self.part("matmul fp8", eight)

    def compiles(self) -> None:
        """One compiled step; where compilation fails everything goes on without it."""
        try:
            self.trainer(self.sizes.dense, PrecisionConfig(), self.sizes.length)()
        except RuntimeError:
            self.sizes = replace(self.sizes, compile=False)
            raise

    def throughput(
        self, name: str, config: ModelConfig, precision: PrecisionConfig, length: int | None = None, bar: float = 0.0
    ) -> float:
        """Tokens per second and MFU of whole training steps; the tokens per second."""
        length = length or self.sizes.length
        step = self.trainer(config, precision, length)
        tokens = max(1, self.sizes.rows * self.sizes.length // length) * length
        speed = tokens / self.seconds(step)
        palm, causal = flops(config, length, "palm").total, flops(config, length, "causal").total
        share = speed * palm / self.sheet
        passed = {"bar": f">= {bar:g}", "ok": speed >= bar} if bar else {}
        self.row(f"{name}: training", "tok/s", speed, **passed)
        self.row(f"{name}: MFU, PaLM count of the data sheet", "share", share)
        both = speed * palm / self.ceiling
        self.row(
            f"{name}: PaLM count of the measured ceiling",
            "share",
            both,
            peer=speed * causal / self.ceiling,
            peer_name="causal count",
        )
        return speed

    def formats(self) -> None:
        """bf16, then FP8 through each back end on the same model: speed, and the loss after so many steps on the same batches."""
        plain = PrecisionConfig()
        base = self.throughput("dense bf16", self.sizes.dense, plain, bar=48_000 if self.device.type == "cuda" else 0)
        reference = self._loss(plain)
        kinds = {
            "TE current scaling": (PrecisionConfig(linear="fp8", backend="te"), 1.30),
            "TE delayed scaling": (PrecisionConfig(linear="fp8", backend="te", recipe="delayed"), 0.0),
            "_scaled_mm": (PrecisionConfig(linear="fp8", backend="scaled_mm"), 1.15),
        }
        for name, (precision, bar) in kinds.items():

            def run(name: str = name, precision: PrecisionConfig = precision, bar: float = bar) -> None:
                step = self.trainer(self.sizes.dense, precision, self.sizes.length)
                speed = self.sizes.rows * self.sizes.length / self.seconds(step)
                ok = speed >= bar * base if bar and self.device.type == "cuda" else None
                said = f">= {bar}" if bar else ""
                self.row(f"dense fp8, {name}", "tok/s", speed, peer=base, peer_name="bf16", ratio=speed / base, bar=said, ok=ok)
                loss = self._loss(precision)
                off = abs(loss / reference - 1)
                metric = f"dense fp8, {name}: loss after {self.sizes.compared} steps"
                good = off <= 0.005 if self.device.type == "cuda" else None
                self.row(
                    metric, "nats", loss, peer=reference, peer_name="bf16", ratio=loss / reference, bar="within 0.5%", ok=good
                )

            self.part(f"dense fp8, {name}", run)

    def _loss(self, precision: PrecisionConfig) -> float:
        """Mean of the last tenth of the steps on fresh batches of the same seed."""
        step = self.trainer(self.sizes.dense, precision, self.sizes.length, fixed=False)
        losses = [step() for _ in range(self.sizes.compared)]
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def shapes(self) -> None:
        """3B dense, MoE, sliding windows at long rows, latent against grouped attention."""
        plain = PrecisionConfig()
        billions = f"{parameters(self.sizes.large).total / 1e9:.1f}B"
        held = parameters(self.sizes.moe)
        experts = f"MoE {held.active / 1e9:.1f}B of {held.total / 1e9:.1f}B bf16, active FLOPs"
        whole = self.sizes
        # A quarter of the rows: their states leave less room for activations.
        self.sizes = replace(whole, rows=max(1, whole.rows // 4))
        self.part(f"dense {billions}", lambda: void(self.throughput(f"dense {billions} bf16", whole.large, plain)))
        self.part("MoE", lambda: void(self.throughput(experts, whole.moe, plain)))
        self.sizes = whole

        def windows() -> None:
            long, wide = self.sizes.long, self.sizes.dense.model_copy(update={"max_positions": self.sizes.long})
            local = LayerKind(window=max(1, self.sizes.length))
            mixed = wide.model_copy(update={"pattern": (local, local, local, LayerKind())})
            full = self.throughput(f"full attention, T = {long}", wide, plain, long)
            speed = self.throughput(f"windows 3:1, T = {long}", mixed, plain, long)
            ok = speed >= 1.6 * full if self.device.type == "cuda" else None
            self.row(
                "windows 3:1 against full", "tok/s", speed, peer=full, peer_name="full", ratio=speed / full, bar=">= 1.6", ok=ok
            )

        def latent() -> None:
            d = self.sizes.dense
            mla = MLAConfig(
                q_latent=d.dim // 2, kv_latent=d.dim // 4, nope_dim=d.head_dim, rope_dim=d.head_dim // 2, v_dim=d.head_dim
            )
            rate = {}
            for name, config in {
                "gqa": d,
                "mla": d.model_copy(update={"mla": mla, "pattern": (LayerKind(attention="mla"),)}),
            }.items():
                speed = self.throughput(name, config, plain)
                rate[name] = speed * flops(config, self.sizes.length, "causal").total
            ratio = rate["mla"] / rate["gqa"]
            ok = ratio >= 0.8 if self.device.type == "cuda" else None
            self.row(
                "MLA: FLOP/s",
                "TFLOP/s",
                rate["mla"] / 1e12,
                peer=rate["gqa"] / 1e12,
                peer_name="GQA",
                ratio=ratio,
                bar=">= 0.8",
                ok=ok,
            )

        self.part("windows", windows)
        self.part("MLA", latent)
        self.row("DSA", "", math.nan, peer_name="correctness only: without a kernel for chosen keys no speed is claimed")

    def optimizer(self) -> None:
        """Muon over all matrices of the dense model, against a step at half a million tokens."""
        model, _ = self.model(self.sizes.dense, PrecisionConfig(), compiled=False)
        optim = OptimConfig(lr=0.02, adam_lr=3e-3, muon_precision="bfloat16", muon_polynomial="polar_express")
        optimizers = Optimizers(model, optim)

        def work() -> None:
            for p in optimizers.parameters:
                p.grad = torch.ones_like(p) if p.grad is None else p.grad
            optimizers.step(1.0)

        taken = self.seconds(work, max(2, self.sizes.steps // 4))
        speeds = [row.ours for row in self.rows if row.metric == "dense bf16: training"]
        whole = 524_288 / speeds[0] if speeds else math.nan
        share = taken / (taken + whole)
        ok = share <= 0.05 if self.device.type == "cuda" else None
        self.row("Muon, all matrices", "ms", 1e3 * taken)
        self.row("Muon's share of a step of 524,288 tokens", "share", share, bar="<= 0.05", ok=ok)

    def outside(self) -> None:
        """Share of device time outside matrix products and attention, by the profiler's kernel names."""
        step = self.trainer(self.sizes.dense, PrecisionConfig(), self.sizes.length)
        for _ in range(self.sizes.warm):
            step()
        with torch.profiler.profile() as profiler:
            step()
        gpu = self.device.type == "cuda"
        inside = total = 0.0
        for event in profiler.key_averages():
            spent = float(event.self_device_time_total if gpu else event.self_cpu_time_total)
            total += spent
            name = event.key.lower()
            inside += spent * any(
                word in name
                for word in ("gemm", "matmul", "::mm", "addmm", "bmm", "attention", "flash", "fmha", "nvjet", "cutlass")
            )
        share = 1 - inside / total if total else math.nan
        self.row("step outside products and attention", "share", share, bar="<= 0.25", ok=share <= 0.25 if gpu else None)

    def numerics(self) -> None:
        """FP8 linear layers against float32 on normal numbers, forward and both gradients; the reference beside the kernel."""
        dim = 64 if self.device.type != "cuda" else 4096
        draws = torch.Generator().manual_seed(0)
        x, g = (
            torch.randn(2 * dim, dim, generator=draws).to(self.device),
            torch.randn(2 * dim, dim, generator=draws).to(self.device),
        )
        weight = torch.randn(dim, dim, generator=draws).to(self.device)

        def through(layer: nn.Module, around: Callable[[], Any]) -> tuple[Tensor, Tensor, Tensor]:
            given = x.clone().requires_grad_()
            with around():
                y = layer(given)
            y.backward(g.to(y.dtype))
            assert given.grad is not None and isinstance(layer.weight.grad, Tensor)  # type: ignore[union-attr]
            return y.float(), given.grad.float(), layer.weight.grad.float()  # type: ignore[union-attr]

        def layer(precision: PrecisionConfig | None) -> tuple[Tensor, Tensor, Tensor]:
            """Output and both gradients in a format; None is float32."""
            holder = nn.ModuleDict({"one": nn.Linear(dim, dim, bias=False)}).to(self.device)
            with torch.no_grad():
                holder["one"].weight.copy_(weight)  # type: ignore[operator, union-attr]
            if precision is None:
                return through(holder["one"], lambda: torch.autocast(self.device.type, enabled=False))
            converted = convert(holder, precision)
            if converted.reasons:
                raise ConfigError(f"expected an FP8 layer, got {converted.reasons}")
            return through(holder["one"], converted.running)

        exact = layer(None)
        found = {}
        for backend in ("te", "scaled_mm", "reference"):

            def run(backend: str = backend) -> None:
                got = layer(PrecisionConfig(linear="fp8", backend=backend, modules="one"))  # type: ignore[arg-type]
                found[backend] = got
                for part, ours, theirs, bar in zip(("forward", "dx", "dw"), got, exact, (4e-2, 8e-2, 8e-2), strict=True):
                    off = relative(ours, theirs)
                    self.row(
                        f"FP8 linear, {backend}: {part}", "rel. error", off, peer_name="float32", bar=f"<= {bar}", ok=off <= bar
                    )

            self.part(f"FP8 linear, {backend}", run)
        if {"scaled_mm", "reference"} <= found.keys():
            off = relative(found["scaled_mm"][0], found["reference"][0])
            self.row("_scaled_mm against its reference", "rel. error", off, bar="<= 4e-3", ok=off <= 4e-3)

    def determinism(self) -> None:
        """Two runs of the same seed, bit for bit."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            curves = []
            for _ in range(2):
                step = self.trainer(self.sizes.dense, PrecisionConfig(), self.sizes.length, fixed=False)
                curves.append([step() for _ in range(self.sizes.exact)])
        finally:
            torch.use_deterministic_algorithms(False)
        same = sum(a == b for a, b in zip(*curves, strict=True))
        n = self.sizes.exact
        self.row(f"{n} steps twice: equal losses", "steps", same, peer=float(n), peer_name="all", bar="bitwise", ok=same == n)

    def run(self) -> list[Row]:
        """Everything, most important first."""
        self.ceilings()
        self.part("compilation; all below is eager", self.compiles)
        self.part("dense bf16", self.formats)
        self.part("Muon", self.optimizer)
        self.part("numerics", self.numerics)
        self.shapes()
        self.part("profile", self.outside)
        self.part("determinism", self.determinism)
        return self.rows


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, norms over everything."""
    return float(((a - b).norm() / b.norm()).detach())


def void(value: float) -> None:
    """Drop a value where none is wanted."""


def measure(settings: Settings, quick: bool) -> list[Row]:
    """The table of this machine's GPU; without one, a row that says so. Quick ones take fewer steps."""
    if not torch.cuda.is_available():
        return [Row("GPU", "", math.nan, None, "not measured: torch finds no CUDA device here; run this on an H100")]
    sizes = Sizes.full(torch.cuda.get_device_properties(0).total_memory)
    return Bench(torch.device("cuda"), replace(sizes, steps=8, compared=50, exact=10) if quick else sizes).run()


def main(arguments: list[str]) -> None:
    """Print the table, with what it was measured on."""
    quick = "--quick" in arguments
    found = measure(Settings.load(), quick)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    try:
        engine = fp8_te.load()[0].__name__
    except ConfigError:
        engine = "no Transformer Engine"
    print(f"{device}; torch {torch.__version__}; {engine}")
    show({"bench": "trainer-gpu", "machine": {"cores": torch.get_num_threads()}, "load": [0, 0]}, found)


if __name__ == "__main__":
    main(sys.argv[1:])
