"""Runs command lines of one program in forked processes, so that its imports are paid once.

`run_commands` starts this file as a program of its own:

python fork_commands.py MODULE < JSON list of argument lists > JSON list of results
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_commands(module: str, cases: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """Exit status, stdout and stderr of `python -m module` with each case's arguments.

    The programs run in `folder`, where `module` may lie.
    """
    done = subprocess.run(
        [sys.executable, __file__, module],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
    )
    return list(json.loads(done.stdout))


def run_forked(module: str, arguments: list[str]) -> dict[str, Any]:
    """Exit status, stdout and stderr of `python -m module arguments`."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        child = os.fork()
        if child == 0:
            for descriptor, path in enumerate(streams, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
            sys.argv = [module, *arguments]
            status = 1
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as exit_:
                status = int(exit_.code or 0)
            except BaseException:
                traceback.print_exc()
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        stdout, stderr = (path.read_text() for path in streams)
    return {"status": os.waitstatus_to_exitcode(status), "stdout": stdout, "stderr": stderr}


def main() -> None:
    module = sys.argv[1]
    # Everything heavy is imported here; JAX starts no threads before its first device.
    __import__(module)
    sys.modules.pop(module)
    json.dump([run_forked(module, each) for each in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
