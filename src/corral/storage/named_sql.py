"""SQL from `.sql` files: queries by name, and migrations by number.

Nothing here talks to a database. A file of queries is a list of statements, each under a line `-- name: word`; a
migration is a file `NNNN_words.sql`, numbered from 1 without gaps and never edited once released. Every backend reads
its SQL through this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Migration(NamedTuple):
    """One step of the schema."""

    version: int
    script: str


class Migrated(NamedTuple):
    """What bringing a schema up to date did."""

    before: int
    """The version that was found; 0 for an empty database."""
    after: int


def read_queries(path: Path) -> Mapping[str, str]:
    """The file's queries by name. A name that stands twice is an error."""
    pieces = re.split(r"^-- name: (\w+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names, statements = pieces[1::2], pieces[2::2]
    queries = {name: statement.strip() for name, statement in zip(names, statements, strict=True)}
    if len(queries) != len(names):
        raise ValueError(f"{path.name} has two queries of one name")
    return queries


def read_migrations(directory: Path) -> tuple[Migration, ...]:
    """All migrations of a directory, first to last."""
    found = tuple(
        Migration(int(path.name.split("_")[0]), path.read_text(encoding="utf-8"))
        for path in sorted(directory.glob("*.sql"))
    )
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"the migrations in {directory.name} are not numbered from 1 without gaps")
    return found
