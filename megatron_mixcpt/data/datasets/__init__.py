"""The engine's datasets of a mixture, and rows of packed samples: the only room of data with torch and the engine."""
