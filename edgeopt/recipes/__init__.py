"""The built-in recipes: ``NAME.toml``, and ``NAME.py`` with the network that it names."""
