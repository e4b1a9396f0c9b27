"""Asked of the same mind without a node: replay, dry run, diagram."""
