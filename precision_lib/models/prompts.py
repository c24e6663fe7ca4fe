"""What a policy is asked, where that is the user's own."""

from dataclasses import dataclass

#: Name, and of a user's own prompts their count, chat template (a bool) and digest.
PromptsContext = dict[str, str | int]


@dataclass(frozen=True)
class Prompts:
    """Prompts in a policy's tokens.

    Attributes:
        name: the file's name.
        tokens: of each prompt, none empty, each prompt once.
        chat: whether they went through a chat template.
        sha256: digest of all tokens.
    """

    name: str
    tokens: tuple[tuple[int, ...], ...]
    chat: bool
    sha256: str

    def as_json(self) -> PromptsContext:
        """What a record says about them."""
        return {
            "name": self.name,
            "count": len(self.tokens),
            "chat_template": self.chat,
            "sha256": self.sha256,
        }
