"""What each task is measured by."""
