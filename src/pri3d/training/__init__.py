"""Pre-training and fine-tuning runs; the only folder that knows Lightning."""
