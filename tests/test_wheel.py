"""What must be inside the package, wherever it is installed: `make wheel` runs this against the built wheel."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

import tokenkeeper
from tokenkeeper.providers import names
from tokenkeeper.store import schema

HOME = Path(tokenkeeper.__file__).parent


def test_migrations_and_alembic_ini_are_side_by_side() -> None:
    """The migrations are found, and stock Alembic finds them through the alembic.ini beside them."""
    folder = schema.migrations_folder()
    scripts = ScriptDirectory.from_config(Config(str(folder.parent / "alembic.ini")))
    assert Path(scripts.dir).resolve() == folder.resolve()
    assert len(list(scripts.walk_revisions())) == schema.CODE_REVISION


def test_migrations_belong_to_the_package_that_is_imported() -> None:
    """An installed package brings its own migrations; a checkout has them at its top."""
    folder = schema.migrations_folder().resolve()
    assert folder in {HOME.resolve() / "migrations", HOME.resolve().parent / "migrations"}


def test_types_and_providers_are_shipped() -> None:
    """The package has its marker for type checkers and its provider files."""
    assert (HOME / "py.typed").is_file()
    assert "linkedin" in names()
