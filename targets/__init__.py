"""The targets: one folder each, a target by being there."""
