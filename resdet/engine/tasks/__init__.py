"""The tasks, by their names in a config."""

from resdet.engine.tasks.base import Task
from resdet.engine.tasks.classification import Classification
from resdet.engine.tasks.detection import Detection
from resdet.engine.tasks.localization import Localization

TASKS: dict[str, Task] = {task.name: task for task in (Detection(), Classification(), Localization())}

__all__ = ["TASKS", "Task"]
