"""Text on both ends of a request: tokenizer, incremental detokenizer, stop strings, chat templates. Knows
neither torch nor an engine."""

from stoker.text.answer_text import AnswerText, TextDelta
from stoker.text.chat_template import ChatTemplate
from stoker.text.detokenizer import Detokenizer
from stoker.text.stop_strings import StopMatch, StopStrings
from stoker.text.tokenizer import Tokenizer

__all__ = ["AnswerText", "ChatTemplate", "Detokenizer", "StopMatch", "StopStrings", "TextDelta", "Tokenizer"]
