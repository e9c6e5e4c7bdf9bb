"""`medsam3 tokens ...` and `medsam3 audit`: who may call, and who did what."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from backend.cli.output import AsJson, print_json, say
from backend.people.roles import Role

tokens = typer.Typer(
    name="tokens",
    help="Tokens of people: each has a name and a role, and opens the API and the console.",
    no_args_is_help=True,
)
PersonName = Annotated[str, typer.Argument(help="The person, as the audit trail says it.")]


@tokens.command("add")
def add_token(
    name: PersonName,
    role: Annotated[
        Role, typer.Option(help="A viewer reads everything and changes nothing.")
    ] = Role.VIEWER,
    as_json: AsJson = False,
) -> None:
    """Make a token and show it, this once: only a hash of it is kept.

    Example: `medsam3 tokens add ada --role admin`
    """
    from backend.people import tokens as people
    from backend.services import open_services

    services = open_services()
    with services.database.session() as session:
        token = people.add(session, services.settings, name, role)
    if as_json:
        print_json({"name": name, "role": role, "token": token})
        return
    say(f"The token of {name} ({role}), which is not shown again:")
    typer.echo(token)


@tokens.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens by name: role, since when, and since when they are revoked.

    Example: `medsam3 tokens list`
    """
    from backend.people import tokens as people
    from backend.services import open_services

    with open_services().database.reading() as session:
        listed = [
            {
                "name": row.name,
                "role": row.role,
                "created_at": row.created_at.isoformat(),
                "revoked_at": row.revoked_at.isoformat() if row.revoked_at else None,
            }
            for row in people.every(session)
        ]
    if as_json:
        print_json({"tokens": listed})
        return
    for token in listed:
        end = f", revoked {token['revoked_at']}" if token["revoked_at"] else ""
        typer.echo(f"{token['name']}  {token['role']}  since {token['created_at']}{end}")
    if not listed:
        say("There are none; the secrets of the settings are an admin's.")


@tokens.command("revoke")
def revoke_token(name: PersonName) -> None:
    """Make a token worthless at once, and the console's sessions that it opened.

    Example: `medsam3 tokens revoke ada`
    """
    from backend.people import tokens as people
    from backend.services import open_services

    with open_services().database.session() as session:
        people.revoke(session, name)
    typer.echo(f"The token of {name} is revoked.")


def audit(
    since: Annotated[
        datetime | None,
        typer.Option(
            help="Only from this time on, UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print who promoted, trained, forgot, made tokens and the like, and who was refused.

    Newest first; with `--json` one entry a line.

    Example: `medsam3 audit --since 2026-01-31`
    """
    from backend.people import audit as trail
    from backend.services import open_services

    start = since.replace(tzinfo=UTC) if since else None
    with open_services().database.reading() as session:
        for row in trail.entries(session, since=start):
            entry = trail.as_json(row)
            if as_json:
                print_json(entry)
                continue
            project = f"project {row.project_id}" if row.project_id is not None else None
            times = f"{row.count} times" if row.count > 1 else None
            details = (project, row.subject, row.detail, row.address, times)
            about = "  ".join(part for part in details if part)
            typer.echo(
                f"{row.at:%Y-%m-%d %H:%M:%S}  {row.person} ({row.via})  {row.action}  {about}"
            )
