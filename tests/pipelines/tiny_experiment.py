"""The config of an experiment that takes seconds; `root` is to be filled in.

Its shards are lossless, so that a stream of a video sees what a trial saw.
"""

TINY = """\
root: {root}
video:
  synthetic: {{num_train: 40, num_val: 20, size: 32, num_frames: 8, fps: 8}}
  sampling: {{num_frames: 4}}
  size: 32
shards: {{clips_per_shard: 20, image_format: png}}
encoder: {{name: test_vit, weights: 'random:0', img_size: 32, dtype: float32}}
features: {{base: {{depths: [0]}}}}
trials:
  trial: {{num_layers: 1, num_heads: 2, readout_dim: 32, readout_heads: 2, epochs: 2, batch_size: 16}}
  axes: {{core: [mean, gru]}}
"""
