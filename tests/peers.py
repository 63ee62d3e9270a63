"""Code of trainers that do not install beside each other, run from their files without their packages.

The folder that RETRM_PEERS names holds them unpacked, one folder a package (`unzip verl-0.9.1*.whl -d verl`).
Tests skip with the reason where it is absent. What such a file imports of its own package and does not need
for what is tested is replaced by stubs.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest


def peer_file(package: str, path: str) -> Path:
    """A file of a package, or a skip that says what is missing."""
    folder = os.environ.get("RETRM_PEERS")
    if not folder:
        pytest.skip(f"RETRM_PEERS names no folder with the unpacked package {package}")
    found = [*Path(folder).glob(f"{package}/**/{path}")]
    if not found:
        pytest.skip(f"{package}/{path} is not below RETRM_PEERS")
    return found[0]


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """A module of that name with these members only, and empty ones for its parents."""
    parts = name.split(".")
    for n in range(1, len(parts)):
        if (parent := ".".join(parts[:n])) not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    made = ModuleType(name)
    made.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, made)


def run_file(
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    name: str,
    stubs: Mapping[str, Mapping[str, object]],
) -> ModuleType:
    """The module that a file makes, known by `name` while the test runs."""
    for stubbed, members in stubs.items():
        stub(monkeypatch, stubbed, **members)
    for n in range(1, len(parts := name.split("."))):
        if (parent := ".".join(parts[:n])) not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
