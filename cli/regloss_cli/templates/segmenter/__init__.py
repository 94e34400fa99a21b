"""The KIND `my-component` of regloss; see README.md."""
