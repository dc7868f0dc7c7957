"""Evaluation of pre-trained video classifiers on a split, with token reduction: points, clips, workers, scores."""
