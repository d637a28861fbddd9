"""
A Hub on loopback that speaks the HTTP API of the Hugging Face Hub, with faults on demand.

`world.py` is the way in; the tests beside it use it with the real clients.
"""
