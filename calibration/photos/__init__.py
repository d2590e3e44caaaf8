"""Natural photos that scikit-image and scikit-learn carry inside their wheels."""
