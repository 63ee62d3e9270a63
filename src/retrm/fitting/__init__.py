"""Fitting heads: one gradient loop, one convex solver, and the targets both learn from."""
