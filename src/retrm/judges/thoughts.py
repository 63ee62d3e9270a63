"""The two blocks of an output: what is between the think tags, and what the answer tags hold behind them."""

import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def split_thoughts(output: str) -> tuple[str | None, str | None]:
    """The thoughts, and all that stands behind them.

    Returns:
        Thoughts, None where there are none; the rest, None where the thoughts were opened and never
        closed. Templates that open the thoughts themselves leave an output that only closes them.
    """
    before, closed, rest = output.partition("</think>")
    if closed:
        return before.partition("<think>")[2].strip() or before.strip() or None, rest
    if "<think>" in output:
        return output.partition("<think>")[2].strip() or None, None
    return None, output


def answer_blocks(rest: str) -> list[str]:
    """The stripped text of every answer block, in order."""
    return [text.strip() for text in _ANSWER.findall(rest)]
