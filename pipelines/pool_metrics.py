"""What a pool does, for the dashboards of a cluster: Ray exports these numbers to Prometheus with the prefix `ray_`."""

from ray.util.metrics import Counter, Gauge


class PoolMetrics:
    """Numbers of one stage."""

    def __init__(self, stage: str) -> None:
        """Start at nothing done.

        Args:
            stage: Tag of all numbers, such as `shard`.
        """
        self._tags = {"stage": stage}
        self._done = Counter("vidflow_clips", "Clips, files or videos done; their rate is clips/s.", ("stage",))
        self._rejects = Counter("vidflow_rejects", "Those of them that were left out.", ("stage",))
        self._waiting = Gauge("vidflow_units_waiting", "Units that no worker has.", ("stage",))
        self._workers = Gauge("vidflow_workers", "Workers that have answered.", ("stage",))
        self._told = (0, 0)

    def note(self, num_done: int, num_rejects: int, *, num_waiting: int, num_workers: int) -> None:
        """Take in the numbers as they are now."""
        for counter, now, told in ((self._done, num_done, self._told[0]), (self._rejects, num_rejects, self._told[1])):
            if now > told:  # the count falls if a worker is lost in the middle of a unit, a counter must not
                counter.inc(now - told, self._tags)
        self._told = max(num_done, self._told[0]), max(num_rejects, self._told[1])
        self._waiting.set(num_waiting, self._tags)
        self._workers.set(num_workers, self._tags)
