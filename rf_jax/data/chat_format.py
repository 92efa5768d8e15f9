"""How the turns of a conversation are told apart: token ids around what each role says.

plain    <bos> question <answer> answer <eos>
ChatML   <|im_start|>user\\n question <|im_end|>\\n<|im_start|>assistant\\n answer <|im_end|>
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rf_jax.data.messages import ROLES

Ids = tuple[int, ...]


@dataclass(frozen=True)
class ChatFormat:
    """Token ids before and after the parts of each role's turn, and between two turns. The
    assistant learns to write those after its own turn, and no others.
    """

    before: Mapping[str, Ids]
    after: Mapping[str, Ids]
    between: Ids = ()

    @property
    def answer_begins(self) -> Ids:
        """What stands between a turn and the assistant's answer."""
        return self.between + self.before['assistant']

    @property
    def question_and_answer(self) -> int:
        """Tokens around a question and its answer, all together."""
        around = self.before['user'] + self.after['user'] + self.after['assistant']
        return len(around + self.answer_begins)


def plain(bos: int, answer: int, eos: int) -> ChatFormat:
    """The format of this package's SentencePiece models: three special tokens, no role names."""
    return ChatFormat(
        before={'system': (bos,), 'user': (bos,), 'assistant': ()},
        after={'system': (eos,), 'user': (answer,), 'assistant': (eos,)},
    )


def chatml(start: int, end: int, encode: Callable[[str], Sequence[int]]) -> ChatFormat:
    """The template of Qwen's chat models. `encode`: text without special tokens to ids."""
    return ChatFormat(
        before={role: (start, *encode(f'{role}\n')) for role in ROLES},
        after=dict.fromkeys(ROLES, (end,)),
        between=tuple(encode('\n')),
    )
