"""Token reduction: pure tensor functions over integer assignments; `build.build_reducer` builds a reducer by name."""
