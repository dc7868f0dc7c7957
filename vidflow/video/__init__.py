"""Read manifests, choose the frames of clips, decode videos and render synthetic ones."""
