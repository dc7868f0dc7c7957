"""Evaluate pre-trained video classifiers on a split, with token reduction."""
