"""A run: what is asked for, its plan, its folder, the work from start to end, and the result."""
