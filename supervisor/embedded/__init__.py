"""The control node in memory: a door to try the product, and the server of the tests."""
