"""The fork-based worker pool. Layer 4: above session and process, below daemons and gateways."""
