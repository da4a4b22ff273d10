"""The errors of training, by what is at fault. Every message names the field, what came and what was expected."""


class TrainingError(Exception):
    """Base of everything that training, export and verification raise on purpose."""


class RecipeError(TrainingError):
    """A recipe (or a part of one) has an unknown, missing or impossible value."""


class DataError(TrainingError):
    """A text or a series cannot be used: not there, empty, too short, not numbers."""


class CheckpointError(TrainingError):
    """A checkpoint file cannot be read, or is not one of ours."""


class ContractError(TrainingError):
    """A model file carries no contract, a broken one, or one that its graph does not keep."""


class ExportError(TrainingError):
    """A graph that was built does not have the properties that the service relies on."""


class VerificationError(TrainingError):
    """An exported model does not compute what it should; the message names the worst element."""
