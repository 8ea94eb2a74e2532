"""The parts: each module has a `run` that takes the options and gives rows of the scorecard."""
