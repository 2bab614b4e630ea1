"""Responses that read a stream: as Server-Sent Events, or as one JSON object."""
