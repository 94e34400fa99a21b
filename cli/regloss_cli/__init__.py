"""The command line of regloss."""
