"""Pure functions on tensors and arrays: camera, pose, matching, voxels, fusion."""
