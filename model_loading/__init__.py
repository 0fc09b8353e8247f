"""From a file on disk to a network in memory."""
