"""`/environments`: search, facets, one with its evidence and files, and the order of new ones."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gymsmith import folder
from gymsmith.difficulty import Difficulty
from gymsmith.endpoints.envelope import Cursor, Envelope, IdempotencyKey, Limit, SettingsDep, StoreDep, labels_of, order
from gymsmith.errors import NotFound
from gymsmith.schema import Environment, Evidence, GenerateKind, Job, Status, last_of_admission

router = APIRouter(tags=["environments"])
Labels = Annotated[tuple[str, ...], Query(description="KEY:VALUE, repeatable; all must hold.", max_length=20)]


class Order(BaseModel):
    """What to make: the payload of a `generate` job."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(
        min_length=1, max_length=500, examples=["pypi:inflection==0.5.1", "git:https://host/repo#v1.0", "man:tar", "shell:all"]
    )
    kind: GenerateKind
    n: int = Field(default=20, ge=1, le=10_000, description="Environments wanted.")
    seed: int = Field(default=0, ge=0, lt=2**63)
    split: Literal["train", "held_out"] = "train"
    levels: list[int] = Field(default_factory=list, max_length=50)
    gates: Literal["admission", "full", "controls"] = "admission"
    issue: str = Field(default="", max_length=200_000, description="Kind llm-issue: the issue's text.")
    model: str = Field(
        default="", max_length=200, description="Kinds llm-..., and review: a model other than the configured one."
    )
    budget_tokens: int = Field(default=0, ge=0, description="Kinds llm-..., and review: stop before more tokens are bought.")
    budget_usd: float = Field(default=0.0, ge=0, description="Kinds llm-..., and review: stop before more dollars are spent.")
    per_function: int = Field(default=0, ge=0, description="Mutations of one function; 0 means the kind's own number.")
    review: bool = Field(default=False, description="A language model reads what passed all other gates; with gates admission.")

    @model_validator(mode="after")
    def _reviewed_in_full(self) -> Self:
        last_of_admission(self.review, self.gates)
        return self


class Incoming(BaseModel):
    """What to import: the payload of an `import` job."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4000, description="A folder, archive or file of the worker, or an https: URL.")
    format: Literal["auto", "harbor", "terminal-bench", "jsonl", "swebench", "task-repository"] = "auto"


@router.get("/environments", operation_id="listEnvironments")
def list_environments(
    store: StoreDep,
    text: Annotated[str, Query(max_length=200, description="Every word must begin a word of the environment.")] = "",
    kind: str | None = None,
    status: Status | None = None,
    label: Labels = (),
    cursor: Cursor = "",
    limit: Limit = 50,
) -> Envelope[Environment]:
    """Environments, newest first."""
    labels = labels_of(label)
    page = store.environments(kind=kind, status=status, labels=labels, text=text, cursor=cursor, limit=limit)
    return Envelope.of(page.items, page.cursor, store.environment_total(kind=kind, status=status, labels=labels, text=text))


@router.get("/environments:facets", operation_id="getEnvironmentFacets")
def facets(
    store: StoreDep,
    text: Annotated[str, Query(max_length=200)] = "",
    kind: str | None = None,
    status: Status | None = None,
    label: Labels = (),
) -> dict[str, dict[str, int]]:
    """Facet -> value -> how many, each facet without its own filter."""
    return store.environment_facets(kind=kind, status=status, labels=labels_of(label), text=text)


@router.get("/environments:rejects", operation_id="getEnvironmentRejects")
def rejects(store: StoreDep, kind: str | None = None) -> dict[str, int]:
    """Reason -> how many were rejected for it."""
    return store.reject_counts(kind)


@router.post("/environments:generate", operation_id="generateEnvironments", status_code=202)
def generate(body: Order, store: StoreDep, response: Response, idempotency_key: IdempotencyKey = "") -> Job:
    """Order new environments; the job shows them being drafted, built and proved."""
    return order(store, response, "generate", body.model_dump(), idempotency_key)


@router.post("/environments:import", operation_id="importEnvironments", status_code=202)
def import_tasks(body: Incoming, store: StoreDep, response: Response, idempotency_key: IdempotencyKey = "") -> Job:
    """Take in tasks that were made elsewhere; they are unproven until their gates have run here."""
    return order(store, response, "import", body.model_dump(), idempotency_key)


@router.get("/environments/{environment_id}", operation_id="getEnvironment")
def get_environment(environment_id: str, store: StoreDep) -> Environment:
    """One environment."""
    return store.environment(environment_id)


@router.get("/environments/{environment_id}/evidence", operation_id="getEnvironmentEvidence")
def get_evidence(environment_id: str, store: StoreDep) -> Evidence:
    """Every gate's result."""
    store.environment(environment_id)
    evidence = store.evidence(environment_id)
    if evidence is None:
        raise NotFound(f"no gate has run on environment {environment_id} yet; `gymsmith env verify {environment_id}` runs them")
    return evidence


@router.get("/environments:difficulty", operation_id="listEnvironmentDifficulties")
def list_difficulties(store: StoreDep, id: Annotated[tuple[str, ...], Query(max_length=200)] = ()) -> list[Difficulty]:
    """pass@1 and pass@8 of each policy that tried these environments; `uncalibrated` where none tried often enough."""
    return list(store.difficulties(id).values())


@router.get("/environments/{environment_id}/difficulty", operation_id="getEnvironmentDifficulty")
def get_difficulty(environment_id: str, store: StoreDep) -> Difficulty:
    """How hard it was for the policies that tried it."""
    return store.difficulties([store.environment(environment_id).id])[environment_id]


@router.get("/environments/{environment_id}/files", operation_id="listEnvironmentFiles")
def list_files(environment_id: str, store: StoreDep, settings: SettingsDep) -> list[folder.Member]:
    """The task folder's files."""
    return folder.members(settings.home, store.environment(environment_id).path)


@router.get("/environments/{environment_id}/files/{name:path}", operation_id="getEnvironmentFile", response_class=Response)
def get_file(environment_id: str, name: str, store: StoreDep, settings: SettingsDep) -> Response:
    """One file's bytes, always as a download of plain bytes: what an environment holds is never rendered."""
    data = folder.content(settings.home, store.environment(environment_id).path, name)
    return Response(data, media_type="application/octet-stream", headers={"content-disposition": "attachment"})
