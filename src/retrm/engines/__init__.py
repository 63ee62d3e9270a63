"""Where work is done: on the workers of a cluster instead of in this process. No torch."""
