"""Tensors -> features: image encoders, U-Net, sparse 3D network, and the one place that reads and writes weights."""
