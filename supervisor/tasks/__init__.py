"""One task: started, watched, paused, stopped, cleaned up."""
