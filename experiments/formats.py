"""Figures as people read them; a figure that does not exist is a dash."""

MISSING = "-"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with so many significant digits, never in exponent form between 1e-4 and 1e9."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None:
        return MISSING
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{number(value / 1e-9)} ns" if value else "0 s"


def size(value: float | None) -> str:
    """Bytes in the decimal unit that suits them."""
    if value is None:
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{number(value)} B"


def percent(value: float | None) -> str:
    """A share from 0 to 1."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def factor(value: float | None) -> str:
    return MISSING if value is None else f"{number(value)}x"


def yes_no(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: MISSING}[value]
