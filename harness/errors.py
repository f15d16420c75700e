"""What a user can cause. Every message says where the fault is and what would have been allowed.

All are picklable (Ray carries them between processes): one positional argument, the finished message.
"""


class HarnessError(Exception):
    """A fault the user can mend. The command line prints its one line and leaves with `exit_code`."""

    exit_code = 2


class ConfigError(HarnessError):
    """The sweep, or a file it names, is not valid."""


class WorkspaceError(HarnessError):
    """The workspace cannot be used: not writable, full, or held by another driver."""


class ArtifactError(HarnessError):
    """An artifact cannot be read: a file is missing or does not match its manifest."""


class DamagedArtifact(ArtifactError):
    """An artifact did not match its manifest and was removed; the next phase of its sweep makes it again."""


class ModelError(HarnessError):
    """A model or scorer cannot be loaded, or cannot do what the sweep asks of it."""


class Interrupted(HarnessError):
    """A stop was requested, and all tasks stopped where nothing is lost. The same command goes on."""

    exit_code = 130


class TrainingError(HarnessError):
    """Training gave no usable adapter, for instance because its loss became NaN."""

    exit_code = 1


class SweepIncomplete(HarnessError):
    """The sweep ended, but some trials failed. They are rows with a reason; run again to retry them."""

    exit_code = 1


class TrackingError(HarnessError):
    """The mirror of a sweep could not be written. Tables and report are complete without it."""

    exit_code = 1


class ExportError(HarnessError):
    """An adapter could not be exported or pushed to the hub. What the sweep made is complete without it."""

    exit_code = 1
