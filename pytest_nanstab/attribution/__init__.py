"""Where a bad value comes from: the user's line."""
