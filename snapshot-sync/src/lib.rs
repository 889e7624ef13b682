//! Content-addressed images, disks and checkpoints.
