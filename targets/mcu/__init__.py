"""A target; see target.toml."""
