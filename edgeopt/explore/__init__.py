"""Many builds of one recipe: a trial is one of them, a sweep runs many side by side."""
