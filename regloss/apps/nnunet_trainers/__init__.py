"""The folder that nnU-Net looks for trainers in: ``nnUNet_extTrainer`` names it."""
