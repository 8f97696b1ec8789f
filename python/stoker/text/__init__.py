"""Text on both ends of a request: tokenizer, incremental detokenizer, stop strings, chat templates. Knows
neither torch nor an engine."""

from stoker.text.answer_text import AnswerText, TextDelta
from stoker.text.chat_template import ChatTemplate
from stoker.text.detokenizer import Detokenizer
from stoker.text.prompts import Prompt, TokenizedPrompt, as_prompt_list, tokenize_prompts
from stoker.text.stop_strings import StopMatch, StopStrings
from stoker.text.tokenizer import Tokenizer

__all__ = [
    "AnswerText",
    "ChatTemplate",
    "Detokenizer",
    "Prompt",
    "StopMatch",
    "StopStrings",
    "TextDelta",
    "TokenizedPrompt",
    "Tokenizer",
    "as_prompt_list",
    "tokenize_prompts",
]
