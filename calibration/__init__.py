"""Data sets that calibrate and judge a network: one folder each, registered by being there."""
