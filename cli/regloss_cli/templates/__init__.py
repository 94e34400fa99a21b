"""What `regloss plugins new` writes, as files that run where they lie: `regloss_cli.scaffold` copies and renames them.

One folder a kind; what they share lies beside. In all of them ``my-component``, ``my_component`` and ``MyComponent``
stand for the new component's name, and KIND and GROUP for its kind and entry-point group.
"""
