"""The streaming edge: a stream, from any position -> one HTTP response, watched from its first moment."""
