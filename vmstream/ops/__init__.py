"""Use cases: folds over events, and the reports they end in."""
