"""The error of data that cannot be used."""


class DataError(ValueError):
    """Data on disk break a rule; the message names file, video and annotation."""
