"""What a trial's batches are made from: stored tokens, the stored stream that enters a block, or frames."""

from vidflow.training.feeds.feed import Clips, Feed, FrameBatch
from vidflow.training.feeds.shards import ShardFeed
from vidflow.training.feeds.stored import StoredFeed

__all__ = ["Clips", "Feed", "FrameBatch", "ShardFeed", "StoredFeed"]
