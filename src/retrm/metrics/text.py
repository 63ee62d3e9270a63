"""Figures as tables and sentences set them: `.812 [.790, .833]`.

>>> from retrm.metrics.text import format_interval
>>> format_interval(-0.021, -0.055, 0.012)
'-.021 [-.055, .012]'
"""


def format_number(value: float) -> str:
    """`.812`, `1.000`, `-.035`: no zero before the point, as tables of shares are set."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def format_interval(value: float, low: float, high: float) -> str:
    """A value with the ends of its interval in brackets."""
    return f"{format_number(value)} [{format_number(low)}, {format_number(high)}]"
