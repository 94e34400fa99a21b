"""Image encoders that segmentation networks are built on; they load weights files of torchvision's format."""
