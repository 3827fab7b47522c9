"""`lorabench report`: one HTML page of results."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report", epilog="Example: lorabench report results -o report.html --open")
@click.argument("folders", metavar="RESULTS_DIR…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
@click.option("--open", "open_page", is_flag=True, help="Show the page in the browser.")
def command(folders: tuple[Path, ...], output: Path, open_page: bool) -> None:
    """Make one HTML page of the results that `lorabench run` wrote into the folders.

    The page needs no network and sends nothing. Runs that failed are results too: they are listed with their messages.
    """
    from lorabench.reports.page import render_report, write_page
    from lorabench.reports.quantities import format_bytes, plural
    from lorabench.reports.runs import read_runs

    runs = read_runs(folders)
    size = write_page(render_report(runs), output)
    failed = sum(run.record.outcome != "ok" for run in runs)
    click.echo(f"wrote {output} ({format_bytes(size)}): {plural(len(runs), 'run')}, {failed} failed")
    if open_page:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())
