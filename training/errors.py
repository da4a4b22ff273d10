"""The errors of training, by what is at fault. Every message names the field, what came and what was expected."""


class TrainingError(Exception):
    """Base of everything that training, export and verification raise on purpose."""


class RecipeError(TrainingError):
    """A recipe (or a part of one) has an unknown, missing or impossible value."""


class DataError(TrainingError):
    """A text or a series cannot be used: not there, empty, too short, not numbers."""


class PackageError(DataError):
    """A pinned data package is not there, cannot be fetched, or is not what was pinned."""


class CheckpointError(TrainingError):
    """A checkpoint file cannot be read, or is not one of ours."""


class ContractError(TrainingError):
    """A model file carries no contract, a broken one, or one that its graph does not keep."""


class ExportError(TrainingError):
    """A graph that was built does not have the properties that the service relies on."""


class VerificationError(TrainingError):
    """An exported model does not compute what it should; the message names the worst element."""


class StorageError(TrainingError):
    """A file or a folder cannot be written; what was there before is unchanged."""


class LocationError(TrainingError):
    """No model and no run lies where one was looked for."""


class OptionError(TrainingError):
    """An option of a command has an impossible value, or does not go with the others."""


class StudyError(TrainingError):
    """A study's folder holds something else than was expected, or one of its runs failed."""


class Stopped(TrainingError):  # Not a failure: the run can go on from its checkpoint.
    """A run ended early because it was asked to. exit_code: what the process should end with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
