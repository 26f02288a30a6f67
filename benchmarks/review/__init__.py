"""The review page in a real browser: pictures of its states, and how long it takes."""
