#!/bin/sh
# Builds the wheel and runs the tests against it in an environment of its own and in a folder without the checkout's
# package, migrations and alembic.ini, so that only what the wheel holds can be imported.
# Usage: tools/test_wheel.sh VENV PYTHON [pytest's arguments]: VENV is one that `make test` set up, PYTHON an interpreter.
set -eu
venv=$1 python=$2
shift 2
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT INT TERM

mkdir "$away/dist" "$away/tests-only"
"$venv/bin/python" -m hatchling build --target wheel --directory "$away/dist" >/dev/null
"$python" -m venv "$away/venv"
tools/install.sh "$away/venv" requirements/dev.txt "$away"/dist/tokenkeeper-*.whl
cp -R tests docs examples benchmarks README.md CHANGELOG.md pyproject.toml "$away/tests-only/"

cd "$away/tests-only"
"$away/venv/bin/python" - <<'PYTHON'
import pathlib, platform, sysconfig
import tokenkeeper

home, site = pathlib.Path(tokenkeeper.__file__).resolve().parent, pathlib.Path(sysconfig.get_path("purelib")).resolve()
assert home.parent == site, f"the tests would import {home}, not the wheel"
missing = [name for name in ("py.typed", "alembic.ini", "migrations/env.py") if not (home / name).is_file()]
assert not missing and list(home.glob("migrations/versions/*.py")), f"the wheel lacks {missing or 'revisions'}"
print(f"testing the wheel in {site} with Python {platform.python_version()}")
PYTHON
"$away/venv/bin/python" -m pytest -p no:cacheprovider "$@"
