"""The agent that runs in each user session and reports idle times to the daemon."""
