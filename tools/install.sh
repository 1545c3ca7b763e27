#!/bin/sh
# Installs hashed requirements and this package (editable) into a virtual environment: with uv, which is pinned and
# hashed too, or with plain pip where uv cannot be had or cannot reach an index (a mirror known to pip alone).
# Usage: tools/install.sh VENV REQUIREMENTS.txt [WHEEL]: a WHEEL is installed in place of the checkout.
set -eu
venv=$1 requirements=$2 wheel=${3:-}
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

echo "setting up $venv from $requirements ..." >&2
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
[ -x "$venv/bin/uv" ] || "$python" -m pip install --quiet --require-hashes --requirement requirements/uv.txt ||
  echo "uv cannot be had here; going on with pip" >&2

# $1 is "uv" or "pip"; the rest are the arguments that both understand.
install() {
  tool=$1
  shift
  case $tool in
    uv) VIRTUAL_ENV=$venv "$venv/bin/uv" pip install --quiet --python "$python" "$@" ;;
    pip) "$python" -m pip install --quiet "$@" ;;
  esac
}

all() {
  install "$1" --require-hashes --requirement "$requirements" || return
  if [ -n "$wheel" ]; then
    install "$1" --no-deps "$wheel"
  else
    install "$1" --no-deps --no-build-isolation --editable .
  fi
}

if [ -x "$venv/bin/uv" ] && all uv; then
  exit 0
fi
all pip
