"""Inference processes: one child per loaded variant, watched and shared out by the server process."""
