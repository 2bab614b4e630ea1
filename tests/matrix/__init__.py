"""Every provider in, every client out: what a model says, the wire of each provider that says it, and what the
client of each dialect understands.
"""
