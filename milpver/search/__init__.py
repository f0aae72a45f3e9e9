"""Native searches: branch and bound on the network itself, with bounds of ``milpver.bounds``."""
