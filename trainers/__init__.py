"""TRL SFTTrainer subclasses for the stages of ShareGPT4V; nothing here reads raw data."""
