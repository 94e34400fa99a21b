"""What nnU-Net finds by the names of trainers."""

from regloss.apps.nnunet import nnUNetTrainerRegloss, nnUNetTrainerTrustRegion

__all__ = ["nnUNetTrainerRegloss", "nnUNetTrainerTrustRegion"]
