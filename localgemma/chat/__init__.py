"""A conversation and what goes into it: pictures, turns, guards."""
