"""Training of slimmable models: dynamic mixing, losses, and the Lightning module. Needs ``slimse[train]``."""
