"""Programs that print the numbers quoted in the documentation: ``python -m bench --help``."""
