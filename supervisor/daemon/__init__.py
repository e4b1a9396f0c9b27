"""The process: its loop, its parts and how they are wired."""
