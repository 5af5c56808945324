"""What the command-line programs share: how they report a mistake, and with which exit status.

0    everything was done
1    the program ran to its end, but a part of its work failed
2    the input was wrong: one sentence on stderr, no traceback unless --verbose
130  interrupted
"""

import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from codecjax.codecs import CODECS, described
from codecjax.errors import UserError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Main = Callable[[list[str]], int | None]

_DEFINE = {
    float: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    str: flags.DEFINE_string,
}

VERBOSE = flags.DEFINE_bool("verbose", False, "Show tracebacks and details.")


def one_sentence(error: BaseException) -> str:
    """The message of `error` on one line, without the trace that a library put into it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    return re.sub(r"\s+", " ", " ".join(lines))


def print_error(error: BaseException, verbose: bool) -> None:
    """Prints `error` to stderr: one sentence, preceded by its traceback if `verbose`."""
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {one_sentence(error)}", file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {one_sentence(Warning(message))}", file=sys.stderr, flush=True)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl flags and config overrides; what is wrong with them ends with status 2.

    Config files and their overrides are read while the flags are parsed, so a config that
    does not exist, an unknown field and a value of the wrong type all surface here.
    """
    try:
        return flags.FLAGS(list(argv))
    except (
        flags.Error,
        AttributeError,
        ImportError,
        KeyError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        print_error(_explain(error, argv), verbose="--verbose" in argv)
        raise SystemExit(EXIT_USAGE) from None


def define_codec_options() -> None:
    """Defines a flag for every option that a codec has, unset where that has its default."""
    owners: dict[str, list[str]] = {}
    for codec, module in CODECS.items():
        for name in module.OPTIONS:
            owners.setdefault(name, []).append(codec)
    for name, codecs in owners.items():
        choices, default = CODECS[codecs[0]].CHOICES[name], CODECS[codecs[0]].OPTIONS[name]
        define = _DEFINE[type(default)]
        about = f"Of codec {' and '.join(codecs)}: {described(choices)}, by default {default}."
        define(name, None, about)


def codec_options() -> dict[str, Any]:
    """The codec options that were set."""
    names = {name for module in CODECS.values() for name in module.OPTIONS}
    values = {name: flags.FLAGS[name].value for name in sorted(names)}
    return {name: value for name, value in values.items() if value is not None}


def missing_config(path: str) -> UserError:
    return UserError(f"config file {path!r} does not exist: name one of the files in configs/")


def _explain(error: Exception, argv: Sequence[str]) -> UserError:
    """Puts the remedy into the messages of absl and ml_collections, which name the problem only."""
    sentence = one_sentence(error)
    if isinstance(error, OSError) and "No such file or directory" in str(error.__cause__):
        path = re.search(r"No such file or directory: '([^']*)'", str(error.__cause__))
        explained = missing_config(path.group(1) if path else "")
    elif isinstance(error, (AttributeError, KeyError)):
        meant = re.search(r'Did you mean "(\w+)"', str(error))
        remedy = f"did you mean {meant.group(1)!r}? The fields" if meant else "the fields"
        explained = UserError(
            f"unknown config field {_field_named(error, argv)!r}: {remedy} are listed in "
            "configs/base.py"
        )
    elif isinstance(error, flags.UnrecognizedFlagError):
        explained = UserError(f"{sentence}: --helpfull lists the flags")
    elif "in argv before a value for --config" in sentence:
        explained = UserError("an override stands before --config: put --config=FILE first")
    elif isinstance(error, (ImportError, SyntaxError)):
        explained = UserError(f"the config file cannot be loaded, mend it first: {sentence}")
    else:
        explained = UserError(sentence)
    explained.__cause__ = error
    return explained


def _field_named(error: Exception, argv: Sequence[str]) -> str:
    """The override on the command line that `error` is about, else the field it names."""
    text = str(error.args[0]) if error.args else ""
    looked_up = re.search(r"lookup: ([\w.]+)", text)
    if looked_up:
        return looked_up.group(1)
    name = re.match(r"\W*(\w*)", text)
    field = name.group(1) if name else text
    for argument in argv:
        path = re.match(r"--?(?:no)?\w+\.([\w.]+)", argument)
        if path and field in path.group(1).split("."):
            return path.group(1)
    return field


def run(main: Main) -> None:
    """Parses the flags, runs `main(positional arguments)` and exits with its status."""

    def guarded(argv: list[str]) -> int | None:
        # absl's handler would print what libraries log about themselves.
        logging.set_verbosity(logging.INFO if VERBOSE.value else logging.WARNING)
        if not VERBOSE.value:
            warnings.showwarning = _show_warning
        try:
            return main(argv)
        except UserError as error:
            print_error(error, VERBOSE.value)
            return EXIT_USAGE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return EXIT_INTERRUPTED

    app.run(guarded, flags_parser=parse_flags)
