"""The OpenAI-compatible server: HTTP front end, and the messages it exchanges with the engine process. Knows neither torch nor an engine."""
