"""The shell: Ray jobs and the `vidflow` command; the only package that imports ray."""
