"""Who may see what is one closed list, and nothing gets around it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from broker.web import auth
from broker.web.auth import ACCESS, ANONYMOUS, PROGRAMS, SIGNED_IN, admit, check_access
from schemas.directory import Role

WEB = Path(auth.__file__).parent


async def nothing() -> PlainTextResponse:
    return PlainTextResponse("nothing")


def test_nothing_is_anonymous_but_the_ping_and_the_way_in() -> None:
    anonymous = {route for route, rule in ACCESS.items() if rule is ANONYMOUS}
    assert anonymous == {("GET", "/_ping"), ("GET", "/static/{name}"), ("GET", "/sign-in"), ("POST", "/sign-in")}


def test_every_role_has_a_rule_and_no_rule_is_empty() -> None:
    rules = [rule for rule in ACCESS.values() if rule is not ANONYMOUS]
    assert all(rules)
    assert frozenset(Role) == SIGNED_IN
    assert {role for rule in rules if rule != SIGNED_IN for role in rule} == set(Role)


def test_programs_may_only_read_and_only_what_operators_may() -> None:
    for (method, path), rule in ACCESS.items():
        if path in PROGRAMS:
            assert (method, rule) == ("GET", frozenset({Role.OPERATOR}))


def test_a_route_without_a_rule_is_refused() -> None:
    app = FastAPI(openapi_url=None, dependencies=[Depends(admit)])
    app.add_api_route("/forgotten", nothing, methods=["GET"])
    with pytest.raises(RuntimeError, match=r"routes without an access rule.*/forgotten"):
        check_access(app.routes, {})


def test_a_rule_without_a_route_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"access rules without a route.*/gone"):
        check_access([], {("GET", "/gone"): SIGNED_IN})


def test_a_route_that_passes_the_gate_by_is_refused() -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/inbox", nothing, methods=["GET"])
    with pytest.raises(RuntimeError, match="/inbox is not guarded"):
        check_access(app.routes, {("GET", "/inbox"): SIGNED_IN})


@pytest.mark.parametrize("route", [Route("/inbox", nothing), Mount("/inbox", app=PlainTextResponse("x"))])
def test_a_route_that_knows_no_gate_is_refused(route: Route | Mount) -> None:
    with pytest.raises(RuntimeError, match="cannot have an access rule"):
        check_access([route], {("GET", "/inbox"): SIGNED_IN})


def test_templates_run_no_script_and_switch_no_escaping_off() -> None:
    for path in sorted((WEB / "templates").glob("*.html")):
        text = path.read_text(encoding="utf-8")
        for forbidden in (
            "<script",
            "javascript:",
            "|safe",
            "| safe",
            "autoescape",
            " style=",
            "<style",
            "onclick",
            "http:",
            "https:",
        ):
            assert forbidden not in text, f"{path.name} holds {forbidden}"


def test_the_style_sheet_asks_no_other_site() -> None:
    text = (WEB / "static" / "style.css").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text


def test_markup_is_made_from_fixed_texts_only() -> None:
    for path in sorted(WEB.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Markup":
                assert all(isinstance(argument, ast.Constant) for argument in node.args), path.name
