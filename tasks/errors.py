"""The one error that a user can cause and mend."""


class InputError(ValueError):
    """What was expected, what came, where, and what to do. Shown without a traceback, never retried."""
