"""What nnU-Net finds by the name of the trainer."""

from regloss.apps.nnunet import nnUNetTrainerRegloss

__all__ = ["nnUNetTrainerRegloss"]
