"""Captions of images: by a model in this process, in slots that are refilled while others decode."""
