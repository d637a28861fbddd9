"""The commands of ShareGPT4V for Hugging Face, over the packages beside it."""
