"""Memory: how texts become vectors, and what is found near to what."""
