"""A scorer of one's own: a program that reads images and prompts and prints a number for each."""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

from harness.config.schema.metric import CommandMetric
from harness.errors import ModelError
from harness.metrics.metric import Batch, Measurement, measurement

EXPECTED = 'a number, null, or {"value": …, "reason": …}'


class Command:
    """What a program says of each image; the direction is the sweep's to state.

    It is started for at most 32 images at once, in the folder of the sweep's file, and reads from stdin one
    JSON object per line: `{"image": "/path/of/a.png", "prompt": "a fox"}`. For each it prints one line, in
    the same order: a number, `null`, or `{"value": 1.5}`, `{"value": null, "reason": "no face"}`. What it has
    to say beside that belongs on stderr. Images that cannot be read are not given to it.

    Raises ModelError where it cannot be started, ends with an error or too late, or prints something else.
    """

    kind = "command"

    def __init__(self, config: CommandMetric) -> None:
        assert config.folder is not None, "filled in when the sweep is read"
        self.version, self.weights_hash = config.version, config.digest
        self._about = f"metric {config.name}: {shlex.join(config.command)[:80]}"
        self._words = [word_at(config.folder, word) for word in config.command]
        self._folder, self._timeout = config.folder, config.timeout

    def measure(self, batch: Batch) -> list[Measurement]:
        """One measurement per line of its output."""
        asked = zip(batch.paths, batch.prompts, strict=True)
        told = "".join(json.dumps({"image": str(path), "prompt": prompt}) + "\n" for path, prompt in asked)
        lines = [line for line in self._run(told).splitlines() if line.strip()]
        if len(lines) != len(batch.paths):
            raise ModelError(
                f"{self._about} printed {len(lines)} lines for {len(batch.paths)} images; expected for each: "
                f"{EXPECTED}; nothing else on stdout"
            )
        return [self._parsed(line) for line in lines]

    def _run(self, told: str) -> str:
        """What it prints for these lines."""
        try:
            # A session of its own, so that what it starts ends with it.
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._folder,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise ModelError(f"{self._about} cannot be started: {error.strerror}") from error
        try:
            printed, complaint = process.communicate(told, timeout=self._timeout)
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"{self._about} took more than {self._timeout:g} s (timeout)") from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            last = complaint.strip().rpartition("\n")[2][:100] or "nothing on stderr"
            raise ModelError(f"{self._about} ended with exit code {process.returncode}: {last}")
        return printed

    def _parsed(self, line: str) -> Measurement:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = line
        value = found.get("value") if isinstance(found, dict) else found
        if (isinstance(found, dict) and "value" not in found) or not _is_number(value):
            raise ModelError(f"{self._about} printed {line[:40]!r}; expected: {EXPECTED}")
        if value is None:
            given = found.get("reason") if isinstance(found, dict) else None
            return Measurement(value=None, reason=str(given or "the command gave no reason")[:200])
        return measurement(float(value))


def word_at(folder: Path, word: str) -> str:
    """A word of the command; where it is a file beside the sweep, that file's absolute path."""
    return str(folder / word) if (folder / word).is_file() else word


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
