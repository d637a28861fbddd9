"""The first story, offline on a CPU: real photographs in, a trained, saved and reloaded ShareGPT4V out."""
