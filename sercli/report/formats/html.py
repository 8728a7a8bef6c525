"""The table as one self-contained HTML page: of a report, what is of tables."""

from __future__ import annotations

from collections.abc import Sequence

from sercli.report.compare.tables import Table


def html(table: Table) -> str:
    """The whole page, readable in a light and in a dark scheme."""
    return html_of([table], table.title)


def html_of(tables: Sequence[Table], title: str) -> str:
    """Tables below each other, then their columns and the runs that they are of."""
    from sercli.report.page.rendering import render
    from sercli.report.page.views import clipped, columns_of, provenance_of, table_view

    views = [table_view(table, f"table-{number}") for number, table in enumerate(tables, 1)]
    runs = {run["path"]: run for table in tables for run in table.provenance.get("runs", [])}
    return render(
        {
            "title": clipped(title),
            "tables": views,
            "columns": columns_of(tables),
            "provenance": provenance_of(list(runs.values())) if runs else None,
            "contents": [(view.key, view.title) for view in views],
        }
    )
