"""A terminal of the tests: enough of ECMA-48 to see what a user of rich's output sees."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b[=>]|(.)", re.DOTALL)


class Screen:
    """Keeps rows of text, the cursor and whether it is shown. No limit to its height.

    `narrow` reflows as modern terminals do: rows that no longer fit are broken.
    """

    def __init__(self, width):
        self.width = width
        self.rows = [""]
        self.row = self.column = 0
        self.is_cursor_shown = True

    def feed(self, text):
        for private, arguments, final, plain in _TOKEN.findall(text):
            if plain:
                self._put(plain)
            elif private and arguments == "25":
                self.is_cursor_shown = final == "h"
            elif final == "A":
                self.row = max(0, self.row - int(arguments or 1))
            elif final == "K" and arguments == "2":
                self.rows[self.row] = ""
            else:
                assert final == "m", f"unexpected control sequence CSI {arguments}{final}"

    def narrow(self, width):
        pieces = [
            [row[at : at + width] for at in range(0, max(len(row), 1), width)] for row in self.rows
        ]
        self.row = sum(len(p) for p in pieces[: self.row + 1]) - 1
        self.rows = [piece for parts in pieces for piece in parts]
        self.width = width
        self.column = len(self.rows[self.row])

    def _put(self, char):
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row, self.column = self.row + 1, 0
            self.rows += [""] * (self.row + 1 - len(self.rows))
        else:
            assert self.column < self.width, "a line is wider than the terminal"
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + char + row[self.column + 1 :]
            self.column += 1

    def lines(self):
        """Rows without blanks at their ends, down to the last that holds anything."""
        rows = [row.rstrip() for row in self.rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows
