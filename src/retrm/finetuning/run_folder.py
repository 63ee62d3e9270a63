"""What a training run leaves behind, and how a killed one goes on.

    config.json     everything that the run hangs on; a folder of another run is refused
    metrics.jsonl   a line a logged step
    samples.jsonl   judgements to read, at intervals
    checkpoints/    of the trainer; the newest one is gone on from, and they are removed at the end
    model/          the judge: an ordinary folder for every verb (low-rank updates are merged)
    adapter/        the low-rank updates alone, where there are any
    done.json       written last: seconds, steps, versions

A run that goes on from a checkpoint drops the lines of metrics and samples that lie behind it, so that no
step stands twice.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrm.errors import ArtifactError
from retrm.files import check_writable, write_json, write_json_lines


@dataclass(frozen=True)
class RunFolder:
    """One run.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def model(self) -> Path:
        """Where the judge is."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its own."""
        return self.path / "checkpoints"

    @property
    def is_done(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "done.json").is_file()

    def begin(self, config: Mapping[str, Any]) -> None:
        """Claim the folder for a run of this config, or go on with the same run.

        Raises:
            ArtifactError: a run of another config lies there; the message names what differs.
            OutputError: it cannot be written.
        """
        check_writable(self.path)
        said = json.loads(json.dumps(config, default=str))
        kept = self.path / "config.json"
        if not kept.is_file():
            write_json(kept, said)
            return
        try:
            before = json.loads(kept.read_text("utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{kept} is damaged ({error}); choose another folder") from error
        changed = sorted(name for name in {*said, *before} if said.get(name) != before.get(name))
        if changed:
            name = changed[0]
            raise ArtifactError(
                f"{self.path} holds a run with {name}={before.get(name)!r}; got {said.get(name)!r} "
                f"({len(changed)} setting(s) differ: {', '.join(changed)}). Choose another folder, or "
                "give the settings of that run to go on with it"
            )

    def config(self) -> dict[str, Any]:
        """What the run hangs on, as `begin` was told.

        Raises:
            ArtifactError: there is no run, or its config is damaged.
        """
        try:
            return json.loads((self.path / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} holds no run that can be read ({error}); expected config.json"
            ) from error

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step that the trainer finished; None without one."""
        found = [
            path
            for path in self.checkpoints.glob("checkpoint-*")
            if (path / "trainer_state.json").is_file() and path.name.split("-")[-1].isdigit()
        ]
        return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that will be made again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            if not path.is_file():
                continue
            write_json_lines(path, [row for row in read_lines(path) if row["step"] <= step])

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line to metrics or samples; what is no finite number is null."""
        self.path.mkdir(parents=True, exist_ok=True)
        plain = {key: _finite(value) for key, value in row.items()}
        with (self.path / name).open("a", encoding="utf-8") as out:
            out.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics so far."""
        path = self.path / "metrics.jsonl"
        return read_lines(path) if path.is_file() else []

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say that the run is over; what was only kept for going on is removed."""
        write_json(self.path / "done.json", dict(facts))
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """What `finish` was told.

        Raises:
            ArtifactError: the run is not over.
        """
        if not self.is_done:
            raise ArtifactError(
                f"the run in {self.path} is not over; run the same command to go on"
            )
        return json.loads((self.path / "done.json").read_text("utf-8"))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
