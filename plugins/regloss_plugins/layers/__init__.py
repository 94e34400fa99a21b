"""Built-in methods; each registers through an entry point, as any plugin does."""
