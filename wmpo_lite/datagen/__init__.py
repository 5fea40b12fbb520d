"""Recorded data: broad play for pre-training, demonstrations for cloning."""
