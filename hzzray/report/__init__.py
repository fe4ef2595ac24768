"""What people look at: plots, time-lines, the console."""
