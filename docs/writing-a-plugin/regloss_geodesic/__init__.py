"""An example plugin of regloss; see README.md."""
