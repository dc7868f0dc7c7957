"""Token reduction: pure tensor functions over integer assignments; `build.build_reducer` makes one by name."""
