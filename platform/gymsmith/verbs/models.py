"""What `gymsmith generate` says and takes for the kinds that ask a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from gymsmith.errors import NotFound, UserError
from gymsmith.schema import LlmKind

KINDS: tuple[str, ...] = get_args(LlmKind)
MAX_ISSUE_BYTES = 4 * 1024 * 1024


def reading(review: bool, *, model: str, budget_tokens: int, budget_usd: float) -> dict[str, Any]:
    """The part of a payload that is about a review.

    Raises: UserError: what goes with it, without it.
    """
    given = _given(model, budget_tokens, budget_usd)
    if given and not review:
        raise UserError(f"expected --{next(iter(given)).replace('_', '-')} with --review, got it alone")
    return {"review": True, **given} if review else {}


def asked(
    kind: str, source: str, *, model: str, budget_tokens: int, budget_usd: float, issue: Path | None, review: bool
) -> dict[str, Any]:
    """The part of an order's payload that is about a model.

    Raises: UserError: an option that this kind does not take, or lacks.
    """
    given = _given(model, budget_tokens, budget_usd)
    if given and kind not in KINDS and not review:
        option = next(iter(given)).replace("_", "-")
        raise UserError(
            f"expected --{option} with --review or a kind that asks a language model ({', '.join(KINDS)}), got it with {kind!r}"
        )
    if review and kind == "llm-setup":
        raise UserError("expected --review with a kind that makes environments, got it with 'llm-setup'")
    if review:
        given["review"] = True
    needed = kind == "llm-issue" and not source.startswith(("issue:", "github:", "swebench:"))
    if (issue is not None) != needed:
        got = "it" if issue else "none"
        raise UserError(f"expected --issue FILE with --kind llm-issue, unless the source is an issue, got {got} with {kind!r}")
    return given | ({"issue": issue_text(issue)} if issue is not None else {})


def _given(model: str, budget_tokens: int, budget_usd: float) -> dict[str, Any]:
    told = {"model": model, "budget_tokens": budget_tokens, "budget_usd": budget_usd}
    return {name: value for name, value in told.items() if value}


def issue_text(path: Path) -> str:
    """An issue from a text, or from JSON with `title`, `body` and perhaps `comments`, as `gh issue view` gives it.

    Raises: NotFound, UserError.
    """
    path = path.expanduser()
    if not path.is_file():
        raise NotFound(f"expected an issue in {path}, there is no such file")
    if path.stat().st_size > MAX_ISSUE_BYTES:
        raise UserError(f"expected an issue of at most {MAX_ISSUE_BYTES} bytes in {path}, got {path.stat().st_size}")
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            document = json.loads(text)
            document = document.get("issue", document)
            said = document.get("comments")
            comments = [str(each.get("body", "")) for each in said] if isinstance(said, list) else []
            text = "\n\n".join([str(document["title"]), str(document.get("body") or ""), *comments])
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} must hold a JSON object with title and body, as `gh issue view --json` gives it: {error}"
            ) from None
    if not text.strip():
        raise UserError(f"expected an issue in {path}, it is empty")
    return text


def bought(result: dict[str, Any]) -> list[str]:
    """What came of asking a model, in lines; none for jobs that asked none."""
    if "llm_model" not in result:
        return []
    lines = []
    if (setup := result.get("setup")) is not None:
        lines.append(f"{setup['passing']} tests pass, {setup['failing']} do not, after {setup['answers']} answers")
        lines.append(f"image {setup['image_id']}; tests: {setup['command']}\n{setup['dockerfile'].rstrip()}")
    if result.get("detail"):
        lines.append(result["detail"])
    tokens = f"{result['llm_prompt_tokens']:,} tokens in, {result['llm_completion_tokens']:,} out"
    cost = f", {result['llm_cost_usd']:.4f} USD" if result["llm_cost_usd"] else ""
    again = f", {result['llm_remembered']} answers were there already" if result["llm_remembered"] else ""
    unread = f", {result['unread']} readings came to nothing" if result.get("unread") else ""
    stopped = "; stopped by the budget: a larger one goes on from here" if result.get("stopped") else ""
    return [*lines, f"{result['llm_model']}: {result['llm_calls']} answers, {tokens}{cost}{again}{unread}{stopped}"]
