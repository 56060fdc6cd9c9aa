"""The parts of bench/gpu_check.py: a step each, and what the steps share."""
