"""A module that sets up its logger when it is imported, and keeps its records to itself."""

import logging

logger = logging.getLogger(__name__)
logger.addHandler(logging.StreamHandler())
logger.propagate = False


def log() -> None:
    logger.warning("from the task")
