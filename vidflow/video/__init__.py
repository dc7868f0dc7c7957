"""Videos in: manifests, sampling, decoding and rendered clips."""
