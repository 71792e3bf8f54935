"""The demo's report: one document, from which the Markdown file, the table on the terminal and the exit code all come.

A promise is a sentence with the number that was measured and the bound it was held against; `kept` decides the exit code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gymsmith.config import Settings
from gymsmith.schema import EvalReport, Run, Score
from gymsmith.store import Store

if TYPE_CHECKING:
    from gymsmith.demo import Plan


def document(
    store: Store,
    plan: Plan,
    run: Run,
    phases: dict[str, dict[str, Any]],
    made: dict[str, Any],
    before: dict[str, str],
    after: dict[str, str],
    permuted: bool,
) -> dict[str, Any]:
    """Everything that happened, as JSON-ready data."""
    reports = {
        f"{when} {label}": store.report(report_id)
        for when, ids in (("sft", before), ("rl", after))
        for label, report_id in ids.items()
    }
    return {
        "run": run.id,
        "plan": plan.name,
        "seed": run.seed,
        "permuted_rewards": permuted,
        "environments": {
            name: {key: made[name][key] for key in ("candidates", "reasons", "seconds", "cpu_seconds")}
            | {"admitted": len(made[name]["admitted"])}
            for name in made
            if name != "seconds"
        },
        "phases": {name: {"seconds": phase["seconds"], "budget": plan.budget_s.get(name)} for name, phase in phases.items()},
        "weights": {
            name: store.run(phases[name]["run"]).summary.get("weights_digest")
            for name in ("pretrain", "sft", "dpo", "rl")
            if name in phases
        },
        "pass_rates": {name: rates(report) for name, report in reports.items()},
        "promises": promises(plan, made, reports, permuted),
    }


def rates(report: EvalReport) -> dict[str, Any]:
    """The numbers of one evaluation."""
    return {
        "report": report.id,
        "mode": report.mode,
        "overall": report.overall.model_dump(),
        "groups": {name: score.model_dump() for name, score in report.groups.items()},
        "mean_commands": report.mean_commands,
        "passed_without_look": report.passed_without_look,
        "errors": report.errors,
        "seconds": report.seconds,
    }


def promises(plan: Plan, made: dict[str, Any], reports: dict[str, EvalReport], permuted: bool) -> list[dict[str, Any]]:
    """What the demo promises, each with what was measured."""
    sft, rl = reports["sft sampled"], reports["rl sampled"]
    gain = 100 * (rl.overall.rate - sft.overall.rate)
    found = [
        promise("SWE environments admitted", len(made["SWE"]["admitted"]), ">=", plan.swe),
        promise("tutorial environments admitted", len(made["tutorial"]["admitted"]), ">=", plan.tutorials),
        promise("passing episodes without a look", sum(r.passed_without_look for r in reports.values()), "<=", 0),
        promise("mean commands per episode", round(rl.mean_commands, 2), ">=", 3.0),
    ]
    if permuted:
        return [*found, promise("control: points gained with permuted rewards", round(gain, 1), "<=", 5.0)]
    found.append(promise("points gained by RL over SFT (sampled)", round(gain, 1), ">=", plan.gain_points))
    found.append(
        promise("RL's interval starts above SFT's end, points", round(100 * (rl.overall.low - sft.overall.high), 1), ">=", 0.0)
    )
    if plan.floor:
        found.append(promise("pass rate after RL", round(rl.overall.rate, 3), ">=", plan.floor))
    if plan.family_floor:
        found.append(
            promise("pass rate of the weakest family", round(min(s.rate for s in rl.groups.values()), 3), ">=", plan.family_floor)
        )
    if "rl folded" in reports:
        folded, plain = reports["rl folded"].overall, reports["rl unfolded"].overall
        found.append(promise("long chains with keep-recent-k", round(folded.rate, 3), ">=", 0.95))
        found.append(promise("points lost without folding", round(100 * (folded.rate - plain.rate), 1), ">=", 10.0))
        found.append(promise("folding: intervals apart, points", round(100 * (folded.low - plain.high), 1), ">=", 0.0))
    return found


def promise(text: str, value: float, relation: str, bound: float) -> dict[str, Any]:
    """A sentence with its number, its bound and whether it was kept."""
    kept = value >= bound if relation == ">=" else value <= bound
    return {"text": text, "value": value, "relation": relation, "bound": bound, "kept": kept}


def percent(score: Score | dict[str, Any]) -> str:
    """`83.2% [80.0, 86.0]`."""
    s = score if isinstance(score, dict) else score.model_dump()
    return f"{100 * s['rate']:.1f}% [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"


def write(settings: Settings, run: Run, doc: dict[str, Any]) -> Path:
    """Write report.json and report.md into the run's folder; the folder."""
    folder = settings.runs_dir / run.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(doc, indent=2, default=str) + "\n")
    (folder / "report.md").write_text(markdown(doc))
    return folder


def markdown(doc: dict[str, Any]) -> str:
    """The report for people."""
    control = " (control: permuted rewards)" if doc["permuted_rewards"] else ""
    lines = [
        f"# Gymsmith demo, {doc['plan']}, seed {doc['seed']}{control}",
        "",
        "## Pass rates on held-out environments (95% Wilson intervals)",
        "",
    ]
    names = sorted({family for r in doc["pass_rates"].values() for family in r["groups"]})
    lines += ["| measurement | all | " + " | ".join(names) + " | commands | unlooked |", "|---" * (len(names) + 4) + "|"]
    for name, r in doc["pass_rates"].items():
        cells = [f"{100 * r['groups'][n]['rate']:.0f}%" if n in r["groups"] else "" for n in names]
        lines.append(
            f"| {name} | {percent(r['overall'])} | "
            + " | ".join(cells)
            + f" | {r['mean_commands']:.2f} | {r['passed_without_look']} |"
        )
    lines += ["", "## Environments", "", "| set | admitted | candidates | rejected because | seconds |", "|---|---|---|---|---|"]
    for name, e in doc["environments"].items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(e["reasons"].items(), key=lambda kv: -kv[1]))
        lines.append(f"| {name} | {e['admitted']} | {e['candidates']} | {reasons or '-'} | {e['seconds']:.0f} |")
    lines += ["", "## Seconds", "", "| phase | took | budget |", "|---|---|---|"]
    lines += [f"| {name} | {p['seconds']:.0f} | {p['budget'] or ''} |" for name, p in doc["phases"].items()]
    lines += ["", "## Promises", "", "| | promise | measured | bound |", "|---|---|---|---|"]
    lines += [
        f"| {'kept' if p['kept'] else 'BROKEN'} | {p['text']} | {p['value']} | {p['relation']} {p['bound']} |"
        for p in doc["promises"]
    ]
    return "\n".join(lines) + "\n"


def show_budget(plan: Plan) -> None:
    """Say at the start what will take how long."""
    total = sum(plan.budget_s.values())
    parts = ", ".join(f"{name} {seconds} s" for name, seconds in plan.budget_s.items())
    Console().print(f"[bold]gymsmith demo ({plan.name})[/]: about {total / 60:.0f} minutes on two idle cores: {parts}")


def show(doc: dict[str, Any], folder: Path) -> None:
    """The final tables on the terminal."""
    console = Console()
    table = Table(title="pass rates, held-out environments")
    for column in ("measurement", "pass rate [95%]", "commands", "unlooked", "seconds"):
        table.add_column(column, justify="left" if column == "measurement" else "right")
    for name, r in doc["pass_rates"].items():
        table.add_row(
            name, percent(r["overall"]), f"{r['mean_commands']:.2f}", str(r["passed_without_look"]), f"{r['seconds']:.0f}"
        )
    console.print(table)
    phases = Table(title=f"seconds per phase, {doc['seconds']:.0f} in all")
    for column in ("phase", "took", "budget"):
        phases.add_column(column, justify="left" if column == "phase" else "right")
    for name, p in doc["phases"].items():
        phases.add_row(name, f"{p['seconds']:.0f}", str(p["budget"] or ""))
    console.print(phases)
    for p in doc["promises"]:
        mark = "[green]kept[/]  " if p["kept"] else "[red]BROKEN[/]"
        console.print(f"{mark} {p['text']}: {p['value']} (promised {p['relation']} {p['bound']})")
    console.print(f"report: {folder / 'report.md'}\nlook at everything: gymsmith up --home {folder.parents[1]}")
