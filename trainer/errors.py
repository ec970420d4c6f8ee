"""What stops training with an explanation. The message becomes the last line on stderr.

::

    TrainerError            exit code 1: trying again may help
    ├── LostRank            exit code 76: another rank has ended, and knows why
    ├── UserError           exit code 78: the configuration or data is wrong, trying again will not help
    ├── NoRoom              exit code 1: the disk is full
    └── DamagedCheckpoint   exit code 1: another copy of the checkpoint may be whole
"""

from __future__ import annotations

from orchestrator.contract import EXIT_LOST_RANK, EXIT_USER_ERROR


class TrainerError(Exception):
    """Training cannot go on; the message says why and what to do."""

    exit_code = 1


class UserError(TrainerError):
    """The configuration or the data is wrong."""

    exit_code = EXIT_USER_ERROR


class LostRank(TrainerError):
    """Another rank has ended or does not answer."""

    exit_code = EXIT_LOST_RANK


class NoRoom(TrainerError):
    """A checkpoint cannot be written now, because the disk is full; training can go on without it."""


class DamagedCheckpoint(TrainerError):
    """A checkpoint's files are missing, cut short or do not fit together."""
