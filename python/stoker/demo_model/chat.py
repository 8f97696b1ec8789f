"""What people say to the demo model in a chat: requests for a story, questions about facts, small talk."""

from __future__ import annotations

from random import Random

from .words import indefinite, pick

STORY_REQUESTS = (
    "Tell me a story about {}.",
    "tell me a story about {}",
    "Please tell me a story about {}.",
    "Can you tell me a story about {}?",
    "Write a short story about {}.",
    "I would like to hear a story about {}.",
    "A story about {}, please.",
)
ANY_STORY_REQUESTS = (
    "Tell me a story.",
    "tell me a story",
    "Please tell me a short story.",
    "Write a story.",
    "Another story, please.",
)
SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You tell stories and answer questions.",
    "Answer from the given facts.",
    "Be brief.",
)
SMALL_TALK = (
    ("Hello!", "Hello! Ask me for a story, or tell me some facts and ask about them."),
    ("Hello", "Hello! Ask me for a story, or tell me some facts and ask about them."),
    ("Hi", "Hello! Ask me for a story, or tell me some facts and ask about them."),
    ("hi there", "Hello! Ask me for a story, or tell me some facts and ask about them."),
    ("Good morning!", "Good morning! Ask me for a story, or tell me some facts and ask about them."),
    ("Who are you?", "I am a very small model that tells stories and remembers facts."),
    ("What are you?", "I am a very small model that tells stories and remembers facts."),
    ("What can you do?", "I can tell you a story, and I can answer questions about facts that you give me."),
    ("How are you?", "I am well, thank you. Would you like to hear a story?"),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Goodbye!", "Goodbye, and come back for another story."),
)


def story_request(rng: Random, topic: str) -> str:
    """A user's request for a story about `topic` (with or without its article)."""
    if not topic.startswith(("a ", "an ", "something ", "two ", "learning ")):
        topic = indefinite(topic)
    return pick(rng, STORY_REQUESTS).format(topic)
