"""Merge a trial's adapters into a file of weights: `vidflow merge-adapters TRIAL --to FILE.safetensors`."""

import argparse
import logging

from pipelines.predict_files import check_local
from vidflow.loading import trial_file
from vidflow.training.merge_adapters import merge_trial

log = logging.getLogger("vidflow")


def main(arguments: argparse.Namespace) -> None:
    """Write the file, and log what it is and how to use it.

    Raises:
        ConfigError: The file is a URL.
        VidflowError: There is no such trial, it adapted nothing, or the weights are not those that it adapted.
    """
    check_local("--to", arguments.to)
    named = (arguments.trial, *arguments.settings)
    with trial_file(*named, tracking_uri=arguments.tracking_uri) as path:
        encoder = merge_trial(path, arguments.to, weights=arguments.weights)
    frozen, size = encoder.frozen, arguments.to.stat().st_size / 1e6
    log.info("merge-adapters: %s with the adapters of %s, %.1f MB -> %s", frozen.name, path, size, arguments.to)
    if encoder.num_frames is not None:
        log.info("clips must have %d frames, because of the temporal embedding", encoder.num_frames)
    log.info("to use it: encoder.name=%s encoder.weights=%s", frozen.name, arguments.to)
