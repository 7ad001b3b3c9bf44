"""Training as an awaitable."""
