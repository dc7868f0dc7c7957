"""Every kind of broken or odd video, through `vidflow shard`: each becomes a sample or a reject, and nothing is lost."""


