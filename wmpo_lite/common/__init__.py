"""What every part of the kit stands on: files, checkpoints, processes, errors."""
