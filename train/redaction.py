"""Take secrets out of texts that are published: a command may hold what nobody meant to show."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

REMOVED = "[removed]"
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8
_FORMS = (
    # Tokens by their looks: Hugging Face, W&B, GitHub, OpenAI and others, AWS, Slack.
    r"\bhf_\w{8,}",
    r"\bwandb_v\d_\w{8,}",
    r"\b(?:gh[pousr]_|github_pat_)\w{8,}",
    r"\bsk-[\w-]{8,}",
    r"\bAKIA[0-9A-Z]{12,}",
    r"\bxox[a-z]-[\w-]{8,}",
    # What a setting calls a secret, and the password of an address.
    r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)",
)
_SETTING = re.compile(
    r"((?:\w*_)?(?:api_?key|token|secret|password|passwd|credentials?)=)[^\s'\"]+", re.IGNORECASE
)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text without secrets, and without the name of the home folder.

    Args:
        text: what is to be published.
        environment: the values of its variables that sound like secrets are taken out.
    """
    values = {
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, REMOVED)
    for form in _FORMS:
        text = re.sub(form, REMOVED, text)
    text = _SETTING.sub(rf"\1{REMOVED}", text)
    home = str(Path.home())
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?=[/\s\"'`]|$)", "~", text)
