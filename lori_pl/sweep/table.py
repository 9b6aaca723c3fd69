"""A sweep's table: a result table whose rows are checked as they are read, by cell."""

from __future__ import annotations

import math

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import ResultTable


class SweepTable(ResultTable):
    """The rows of cells; those of a table that has others too are left as they are."""

    def rows(self) -> list[dict[str, str]]:
        """As `ResultTable.rows`.

        Raises:
            LoriError: As there, or a cell's row lacks what every run notes; the message names line and column.
        """
        rows = super().rows()
        for line, row in enumerate(rows, start=2):
            if row.get("cell"):
                self._check(line, row)
        return rows

    def of(self, id: str) -> list[dict[str, str]]:
        """The rows of a cell's id, oldest first.

        Args:
            id: The id.
        """
        return [row for row in self.rows() if row.get("cell") == id]

    def done(self, id: str) -> dict[str, str] | None:
        """The last row of a cell's id, if the cell has ended well.

        Args:
            id: The id.
        """
        rows = self.of(id)
        return rows[-1] if rows and rows[-1]["status"] == "ok" else None

    def _check(self, line: int, row: dict[str, str]) -> None:
        status = row.get("status", "")
        if status not in ("ok", "failed"):
            self._fail(line, "status", "'ok' or 'failed'", status)
        if not row["seed"].isdecimal():
            self._fail(line, "seed", "a whole number", row["seed"])
        numbers = ["seconds", *(["accuracy"] if status == "ok" else [])]
        for column in (*numbers, *(column for column in ("validation", "low", "high") if row.get(column))):
            if not _is_number(row.get(column, "")):
                self._fail(line, column, "a number", row.get(column, ""))

    def _fail(self, line: int, column: str, expected: str, found: str) -> None:
        raise LoriError(
            f"{self.path}, line {line}, column '{column}': expected {expected}, got '{found[:60]}'; mend it, "
            "or take the line out, and its cell is run again"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
