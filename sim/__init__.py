"""The deterministic simulator: it runs the production cores under a virtual clock."""
