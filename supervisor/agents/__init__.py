"""Small programs of ours that run outside the daemon."""
