"""What the schema says in words, apart from it: who needs only these need not load `datasets`."""

IMAGE_TOKEN = "<image>"
# The one request that a captioner answers whatever the image is of, in training and in use.
CAPTION_INSTRUCTION = "Describe this image in detail."
