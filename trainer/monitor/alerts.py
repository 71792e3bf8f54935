"""Watches a run and says who is to blame: an alert names its suspect and shows the evidence.

| suspect | what is seen |
|---|---|
| `batch` | loss or gradient norm far outside its own recent scatter for one step; the documents that carry the excess |
| `learning rate` | such steps keep coming, or the loss climbs and stays up; the rate, and how loss and gradient grew |
| `overflow` | a loss or gradient that is not finite, or numbers that saturate their format; the tensors |
| `experts` | one expert drowns or starves for many steps; layer, expert and its share |
| `attention` | a logit beyond what softmax survives in half precision; layer and head |
| `loader` | the step waits for data; the share of the time |

Scatter is median and MAD over a window that spikes do not enter, so one bad batch does not blind it to the next. The monitor only
talks: skipping an update is the optimizer's business, stopping a run the operator's. Imports no torch.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal

log = logging.getLogger(__name__)
Suspect = Literal["batch", "learning rate", "overflow", "experts", "attention", "loader", "throughput"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One finding. `text` is a whole sentence; `evidence` holds its numbers."""

    step: int
    suspect: Suspect
    text: str
    evidence: dict[str, Any]


@dataclass(slots=True)
class Facts:
    """What a step can tell beside its metrics; everything is optional."""

    documents: Sequence[str] = ()
    """Ids of the batch's documents."""
    document_losses: Sequence[float] = ()
    """Mean loss of each."""
    loads: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Layer -> tokens that each expert got."""
    logits: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Layer -> largest attention logit of each head."""
    saturated: Mapping[str, float] = field(default_factory=dict)
    """Tensor -> share of its numbers that are not finite or at the end of their format."""


@dataclass(slots=True)
class Limits:
    """When to speak."""

    window: int = 128
    """Steps that the scatter is taken over."""
    history: int = 24
    """Steps before which nothing is called unusual: the start of a run falls by itself."""
    sigmas: float = 6.0
    patience: int = 5
    """Steps in a row, or spikes within twice as many, after which a condition is a state and no accident."""
    imbalance: float = 2.0
    """Largest load over mean load, minus one (MaxVio)."""
    starved: float = 0.02
    """Of the mean load, below which an expert starves."""
    logit: float = 100.0
    """Of attention, scaled: QK-clip's own threshold (Kimi K2 report, section 2.1)."""
    saturation: float = 0.01
    wait: float = 0.1
    """Share of a step spent waiting for data."""
    again: int = 50
    """Steps before the same suspect is named again."""


@dataclass(slots=True)
class Scatter:
    """Recent values of one metric, spikes left out."""

    window: int
    values: deque[float] = field(default_factory=deque)

    def sigmas(self, value: float) -> float:
        """How many robust standard deviations `value` lies above the recent median."""
        middle = median(self.values)
        spread = 1.4826 * median(abs(v - middle) for v in self.values)
        return (value - middle) / max(spread, 1e-3 * abs(middle), 1e-12)

    def add(self, value: float) -> None:
        self.values.append(value)
        while len(self.values) > self.window:
            self.values.popleft()


class Monitor:
    """Call it after each step with (step, metrics); what it has to say comes back, and stays in `alerts`."""

    def __init__(self, limits: Limits | None = None, tell: Callable[[Alert], None] | None = None) -> None:
        self.limits = limits or Limits()
        self.tell = tell
        self.alerts: list[Alert] = []
        self.loss, self.norm = Scatter(self.limits.window), Scatter(self.limits.window)
        self.recent: deque[tuple[float, float]] = deque(maxlen=2 * self.limits.patience)
        """(loss, gradient norm) of the last steps, spikes included."""
        self.spikes: deque[int] = deque(maxlen=self.limits.patience)
        self.runs: dict[str, int] = {}
        """Condition -> steps that it has held without a break."""
        self.named: dict[str, int] = {}
        self.top_rate = 0.0

    def __call__(self, step: int, metrics: Mapping[str, float], facts: Facts | None = None) -> list[Alert]:
        facts = facts or Facts()
        before = len(self.alerts)
        self._numbers(step, metrics, facts)
        self._experts(step, facts)
        self._attention(step, facts)
        self._loader(step, metrics)
        return self.alerts[before:]

    # -------------------------------------------------------- loss and gradient

    def _numbers(self, step: int, metrics: Mapping[str, float], facts: Facts) -> None:
        loss, norm = metrics.get("loss", 0.0), metrics.get("gradient_norm", 0.0)
        rate = metrics.get("rate", 1.0)
        self.top_rate = max(self.top_rate, rate)
        full = {name: share for name, share in facts.saturated.items() if share > self.limits.saturation}
        broken = not (math.isfinite(loss) and math.isfinite(norm))
        growing = self._growth()
        if full or (broken and growing < 10):
            worst = sorted(full, key=lambda name: -full[name])[:5]
            where = ", ".join(f"{name} ({100 * full[name]:.1f}%)" for name in worst) or "no tensor is known to saturate"
            evidence: dict[str, Any] = {"loss": loss, "gradient_norm": norm, "saturated": {name: full[name] for name in worst}}
            text = f"numbers leave their format: loss {loss:.4g}, gradient norm {norm:.4g}; {where}"
            self._say(step, "overflow", text, evidence | self._blamed(facts))
        elif broken:
            self._rate(step, rate, f"the loss ends at {loss:.4g} after its gradient grew {growing:.0f} times")
        if broken:
            return
        self.recent.append((loss, norm))
        if len(self.loss.values) < self.limits.history:
            self.loss.add(loss)
            self.norm.add(norm)
            return
        by_loss, by_norm = self.loss.sigmas(loss), self.norm.sigmas(norm)
        if max(by_loss, by_norm) <= self.limits.sigmas:
            self.loss.add(loss)
            self.norm.add(norm)
            return
        self.spikes.append(step)
        often = len(self.spikes) == self.limits.patience and step - self.spikes[0] < 2 * self.limits.patience
        if often:
            self._rate(step, rate, f"{len(self.spikes)} of the last {step - self.spikes[0] + 1} steps were spikes")
            # A new level is a new normal, or the run would be spoken of at every step to its end.
            self.loss.values.clear()
            self.norm.values.clear()
            self.spikes.clear()
            return
        middle = median(self.loss.values)
        evidence = {
            "loss": loss,
            "usual_loss": middle,
            "gradient_norm": norm,
            "usual_gradient_norm": median(self.norm.values),
        }
        evidence |= {"sigmas": round(max(by_loss, by_norm), 1)} | self._blamed(facts)
        if evidence.get("rose_together") and step - self.named.get("batch", -self.limits.again) <= 2 * self.limits.patience:
            return  # What a bad batch did to the weights, not another bad batch.
        names = evidence.get("documents") or list(facts.documents)[:8]
        which = f"; its documents {', '.join(map(str, names))}" if names else ""
        text = f"loss {loss:.4g} (usually {middle:.4g}), gradient norm {norm:.4g}: {evidence['sigmas']} sigmas off{which}"
        self._say(step, "batch", text, evidence | {"batch": list(facts.documents)})

    def _blamed(self, facts: Facts) -> dict[str, Any]:
        """The few documents that carry nine tenths of the batch's excess loss, worst first; none where all of them rose."""
        if not facts.documents or len(facts.document_losses) != len(facts.documents):
            return {}
        rows = sorted(zip(facts.document_losses, facts.documents, strict=True), key=lambda row: (math.isfinite(row[0]), -row[0]))
        broken = [name for value, name in rows if not math.isfinite(value)]
        if broken or not self.loss.values:
            return {"documents": broken[:8]}
        usual = median(self.loss.values)
        total = sum(max(0.0, value - usual) for value, _ in rows)
        carried, worst = 0.0, 0
        while worst < len(rows) and carried < 0.9 * total:
            carried += rows[worst][0] - usual
            worst += 1
        if worst > len(rows) / 4:
            return {"documents": [], "rose_together": True}
        return {"documents": [name for _, name in rows[:worst]], "document_losses": [value for value, _ in rows[:worst]]}

    def _growth(self) -> float:
        """How many times larger the gradient has become over the last steps."""
        norms = [norm for _, norm in self.recent]
        return norms[-1] / max(min(norms), 1e-12) if len(norms) > 2 else 1.0

    def _rate(self, step: int, rate: float, why: str) -> None:
        losses = [loss for loss, _ in self.recent]
        usual = median(self.loss.values) if self.loss.values else math.nan
        evidence: dict[str, Any] = {
            "rate": rate,
            "share_of_top_rate": rate / self.top_rate if self.top_rate else 1.0,
            "usual_loss": usual,
        }
        evidence |= {"recent_losses": losses, "gradient_growth": self._growth()}
        text = f"{why}; loss {losses[-1] if losses else math.nan:.4g} against {usual:.4g} before, "
        text += f"at {100 * evidence['share_of_top_rate']:.0f}% of the highest rate; lower it, or warm up longer"
        self._say(step, "learning rate", text, evidence)

    # -------------------------------------------------------- parts

    def _experts(self, step: int, facts: Facts) -> None:
        for layer, loads in facts.loads.items():
            mean = fmean(loads)
            if mean <= 0:
                continue
            top = max(range(len(loads)), key=lambda i: loads[i])
            violation = loads[top] / mean - 1
            starving = [i for i, load in enumerate(loads) if load < self.limits.starved * mean]
            drowns, starves = (
                self._held(f"drowns/{layer}", violation > self.limits.imbalance),
                self._held(f"starves/{layer}", bool(starving)),
            )
            evidence = {"layer": layer, "expert": top, "max_violation": violation, "starving": starving, "loads": list(loads)}
            if drowns:
                share = f"expert {top} of {layer} gets {violation + 1:.1f} times its share"
                self._say(step, "experts", f"{share}; raise the balancing rate or look at the data", evidence)
            elif starves:
                self._say(step, "experts", f"experts {starving} of {layer} get next to nothing; they stop learning", evidence)

    def _attention(self, step: int, facts: Facts) -> None:
        for layer, logits in facts.logits.items():
            head = max(range(len(logits)), key=lambda i: logits[i])
            if logits[head] > self.limits.logit:
                text = f"head {head} of {layer} has logits up to {logits[head]:.0f}; clip queries and keys, or norm them"
                self._say(step, "attention", text, {"layer": layer, "head": head, "logit": logits[head]})

    def _loader(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds, waited = metrics.get("seconds", 0.0), metrics.get("loader_seconds", 0.0)
        if self._held("loader", seconds > 0 and waited / seconds > self.limits.wait):
            text = f"{100 * waited / seconds:.0f}% of a step waits for data; add loader workers or look at the disk"
            self._say(step, "loader", text, {"loader_seconds": waited, "seconds": seconds})

    # -------------------------------------------------------- speaking

    def _held(self, condition: str, now: bool) -> bool:
        """Whether a condition has held for `patience` steps in a row."""
        self.runs[condition] = self.runs.get(condition, 0) + 1 if now else 0
        return self.runs[condition] >= self.limits.patience

    def _say(self, step: int, suspect: Suspect, text: str, evidence: dict[str, Any]) -> None:
        if suspect not in ("batch", "overflow") and step - self.named.get(suspect, -self.limits.again) < self.limits.again:
            return
        self.named[suspect] = step
        alert = Alert(step, suspect, text, evidence)
        self.alerts.append(alert)
        log.warning("step=%d suspect=%s %s", step, suspect.replace(" ", "-"), text)
        if self.tell:
            self.tell(alert)
