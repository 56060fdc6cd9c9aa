"""Running a network on microbatches in lockstep, and leaving it as it was."""
