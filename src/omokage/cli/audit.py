"""`omokage audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from omokage.cli.options import FilePath, json_option, output_option, quiet_option
from omokage.cli.progress import ProgressBar


@click.group()
def audit() -> None:
    """What left omokage on this machine, when, and whether anybody changed the record.

    It lies in the folder OMOKAGE_AUDIT, or in `audit` where omokage keeps a user's data. docs/audit.md says more.
    """


@audit.command(name="show")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many rows.")
@json_option
def show_rows(last: int, as_json: bool) -> None:
    """The last rows, with what is personal of them as far as it is kept."""
    from omokage.trust.audit_report import last_rows, rows_text

    rows = last_rows(last)
    values: list[dict[str, Any]] = [row.to_json() | {"personal_values": personal} for row, personal in rows]
    click.echo(json.dumps(values, indent=2) if as_json else rows_text(rows) or "nothing has left yet")


@audit.command(name="verify")
@click.argument("log", type=FilePath, required=False)
@click.option("--against", type=FilePath, help="An export that was kept elsewhere.")
@json_option
@quiet_option
def verify_log(log: Path | None, against: Path | None, as_json: bool, quiet: bool) -> int:
    """Is LOG what was written? LOG is a folder or an export (default: this user's).

    Rows that were edited, dropped, moved or cut off are found. The exit status is 2 when there are any.
    """
    from omokage.trust.audit_check import verify

    with ProgressBar(is_quiet=quiet) as on_progress:
        report = verify(log, against=against, on_progress=on_progress)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
    return 0 if report.is_whole else 2


@audit.command(name="export")
@output_option("The file to write, such as audit.jsonl.")
@click.option("--personal", is_flag=True, help="With names of files and users, as far as they are kept.")
def export_log(output: Path, personal: bool) -> None:
    """Write the whole log to one signed file, to be kept where nobody who could change the log can reach."""
    from omokage.trust.audit_report import export

    export(output, with_personal=personal)
    click.echo(f"export: {output}")
