"""A small data set to train on, and configurations for it."""

from quick_training import _no_tensorboard, _quick_report, real_report  # noqa: F401 - fixtures
from training_runs import config, images, quick_processes, trained  # noqa: F401 - fixtures
