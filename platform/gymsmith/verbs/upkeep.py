"""`gymsmith db ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from gymsmith.verbs.terminal import Home, Json, emit, settings_for

app = typer.Typer(no_args_is_help=True, help="The database behind the state folder, and what gathers in it.")


@app.command("upgrade")
def db_upgrade(home: Home = None) -> None:
    """Bring the database to this version's tables (the embedded SQLite does so by itself)."""
    from gymsmith.store import Store

    Store.migrate(settings_for(home))


@app.command("gc")
def db_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    events_days: Annotated[float, typer.Option(min=0, help="Remove events older than so many days.")] = 30.0,
    logs: Annotated[int, typer.Option(min=0, help="Keep the logs of so many newest ended runs.")] = 50,
    checkpoints: Annotated[int, typer.Option(min=1, help="Keep so many newest checkpoints of each ended run.")] = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove what nobody needs: chunk files without rows, old events, logs and checkpoints of ended runs.

    Safe beside a working house. Environments, trajectories, reports and curves are never touched.
    """
    from gymsmith import upkeep
    from gymsmith.store import Store

    with Store.open(settings_for(home)) as store:
        litter = upkeep.find(store, events_days=events_days, logs=logs, checkpoints=checkpoints)
        table = litter.table()
        if not dry_run:
            upkeep.remove(store, litter, events_days=events_days)
    if as_json:
        emit({"removed": not dry_run, **{what: {"count": n, "bytes": size} for what, n, size in table}})
        return
    for what, n, size in table:
        print(f"{n:8d}  {what:12s} {f'{size / 2**20:.1f} MiB' if size else ''}".rstrip())
    print("nothing was removed (--dry-run)" if dry_run else "removed")
