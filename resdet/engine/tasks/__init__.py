"""The tasks, by their names in a config. Each is imported when it is asked for: a detector needs no localizer."""

from functools import cache

from resdet.engine.tasks.base import Task

OWN_SECTIONS = {"detection": ("augmentation",), "classification": (), "localization": ("crop", "regions")}
"""Of each task, the sections of a config that no other reads."""


@cache
def task_named(name: str) -> Task:
    """One of :data:`OWN_SECTIONS`."""
    if name == "detection":
        from resdet.engine.tasks.detection import Detection

        return Detection()
    if name == "classification":
        from resdet.engine.tasks.classification import Classification

        return Classification()
    from resdet.engine.tasks.localization import Localization

    return Localization()


__all__ = ["OWN_SECTIONS", "Task", "task_named"]
