"""What others see: the report, exported adapters, W&B."""
