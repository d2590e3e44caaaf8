"""edgeopt."""
