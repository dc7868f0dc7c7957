"""Workers of the stages: plain callables that know arrays and files, not Ray."""
