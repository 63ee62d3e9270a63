"""What the tests of pictures share: the header of a PNG, and the figures that are being saved."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

PNG = b"\x89PNG\r\n\x1a\n"


def size(png: Path | bytes) -> tuple[int, int]:
    """Width and height from the header of a PNG file."""
    head = (png if isinstance(png, bytes) else png.read_bytes())[:24]
    assert head[:8] == PNG
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved while a test runs."""
    seen, save = [], Figure.savefig

    def keep(self, *args, **options):
        seen.append(self)
        return save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return seen
