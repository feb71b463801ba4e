"""Sections of documents that tests write: asserted as they stand, or written anew where PENSTOCK_UPDATE_DOCS is set."""

import os
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"
UPDATE = bool(os.environ.get("PENSTOCK_UPDATE_DOCS"))


def section(document: str, name: str) -> list[str]:
    """The rows between `<!-- begin NAME -->` and `<!-- end NAME -->`, without the table's head."""
    text = (DOCS / document).read_text()
    _, _, rest = text.partition(f"<!-- begin {name} -->\n")
    inside, found, _ = rest.partition(f"<!-- end {name} -->")
    assert found, f"docs/{document} has no section {name}"
    return [line for line in inside.splitlines() if line.startswith("|")][2:]


def write_section(document: str, name: str, head: list[str], rows: list[str]) -> None:
    """Replaces what is between the marks."""
    path = DOCS / document
    before, begin, rest = path.read_text().partition(f"<!-- begin {name} -->\n")
    _, end, after = rest.partition(f"<!-- end {name} -->")
    path.write_text(before + begin + "\n".join(["", *head, *rows, "", end]) + after)


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
