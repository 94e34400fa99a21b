"""What binds the kernels, which know arrays alone, to the types that they are fast code for (`regloss.dispatch`)."""
