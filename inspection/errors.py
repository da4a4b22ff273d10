"""Why a model is refused."""


class InspectionError(Exception):
    """A model file that cannot be served at all: it is damaged, hostile or beyond a limit, or its settings are wrong.

    A model that only does not stream is no error: its report says why.
    """
