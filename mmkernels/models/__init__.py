"""Small models that put the losses to work on real data."""
