# Makes the virtual environment .venv of this checkout, or completes it; to be sourced.
#
# install_environment [EXTRAS]: installs codecjax with the extras, such as [dev], in the
# versions of constraints.txt. Does nothing where that is done already.

find_python() {
  local candidate
  for candidate in python3.12 python3 python; do
    # A shim may be there without the Python it stands for, so each is tried.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.12 or newer was found: install it, so that python3.12 runs" >&2
  return 1
}

install_environment() {
  local extras="${1:-}" python wanted stamp
  stamp=".venv/installed${extras//[^a-z,]/-}"
  wanted="$(cat pyproject.toml constraints.txt)"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
    return
  fi
  if [[ ! -x .venv/bin/python ]]; then
    python="$(find_python)" || return 1
    echo "makes .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "error: $python cannot make virtual environments: install its venv module" >&2
      return 1
    fi
  fi
  echo "installs codecjax$extras into .venv"
  .venv/bin/python -m pip install --constraint constraints.txt --editable ".$extras"
  echo "$wanted" >"$stamp"
}
