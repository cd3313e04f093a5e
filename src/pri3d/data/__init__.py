"""Prepared dataset -> batches: pairs and labelled images, colour augmentation, a sampler that can resume."""
