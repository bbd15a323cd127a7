"""Who may see which page, and how the pages know who asks."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from broker.settings import Environment
from broker.storage import logins
from broker.storage.tables import AlertState
from broker.web import auth
from broker.web.app import create_app
from broker.web.auth import ACCESS, ANONYMOUS, PROGRAMS, PasswordCheck
from broker.web.operations import compose_status
from broker.web.pages import PageLimits
from schemas.directory import Role
from schemas.identifiers import BROKER_OWNER
from tests.factories import (
    CHEAP_HASHER,
    PASSWORD,
    make_settings,
    serve_app,
    store_login,
)
from tests.pages import (
    ASH,
    BO,
    DEE,
    FORM_TOKEN,
    KIT,
    LOGINS,
    NORTHFOLD,
    PAT,
    READY,
    Client,
    Pages,
)
from tests.world import World

# Who may see what


async def visit_route(client: Client, method: str, path: str, alert: str) -> httpx.Response:
    address = path.replace("/alerts/{alert_id}", alert).replace("{name}", "style.css")
    for parameter in ("{review_id}", "{missed_id}", "{item_id}", "{notice_id}", "{task_id}", "{incident_id}"):
        address = address.replace(parameter, "0" * 32)
    address = address.replace("{upload_id}", "0" * 32).replace("{difference_id}", "0" * 32)
    address = address.replace("{decision}", "reject").replace("{reply_id}", "0" * 32)
    address = address.replace("{kind}/{version}/{step}", "visits/1/off")
    assert "{" not in address, f"say what stands for the parameters of {path}"
    return await (client.post(address) if method == "POST" else client.get(address))


def _without_date(answer: httpx.Response) -> dict[str, str]:
    """The headers but the one that the clock changes."""
    return {name: text for name, text in answer.headers.items() if name != "date"}


def expected_answer(method: str, path: str, role: Role | None) -> set[int]:
    """303 for a page without a sign-in, 401 for a program's, 403 for a role that may not, 400 without a form token."""
    rule = ACCESS[method, path]
    if rule is not ANONYMOUS and role is None:
        return {401} if path in PROGRAMS else {303}
    if rule is not ANONYMOUS and role not in rule:
        return {403}
    if method == "POST":
        return {400}
    if path in ("/reviews/{review_id}", "/force/incidents/{incident_id}") or path.endswith("/place"):
        return {404}  # there is no doubt, and no incident, with that id, and nobody restricted
    return {303} if path == "/" else {200}


@pytest.mark.parametrize("role", [None, *Role])
async def test_every_route_answers_every_role_as_its_rule_says(pages: Pages, role: Role | None) -> None:
    alert = await pages.alert_of(ASH)
    asked = set()
    async with pages.client() if role is None else pages.signed_in(LOGINS[role]) as client:
        for route in pages.app.routes:
            assert isinstance(route, APIRoute)
            for method in route.methods or ():
                answer = await visit_route(client, method, route.path, alert)
                assert answer.status_code in expected_answer(method, route.path, role), f"{method} {route.path}"
                if role is None and answer.status_code == 303:
                    assert answer.headers["location"].startswith("/sign-in")
                asked.add((method, route.path))
    assert asked == set(ACCESS)


async def test_a_route_without_a_rule_stops_the_start(
    pages: Pages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start() -> None:
        create_app(
            database=pages.world.database,
            keyring=pages.world.keyring,
            clock=pages.world.clock,
            settings=pages.settings,
            rules=pages.world.rules,
            status=lambda: compose_status(pages.world.database, READY),
        )

    without = {route: rule for route, rule in ACCESS.items() if route != ("GET", "/inbox")}
    monkeypatch.setattr(auth, "ACCESS", without)
    with pytest.raises(RuntimeError, match=r"without an access rule.*/inbox"):
        start()
    monkeypatch.setattr(auth, "ACCESS", {**ACCESS, ("GET", "/gone"): ANONYMOUS})
    with pytest.raises(RuntimeError, match=r"without a route.*/gone"):
        start()


async def test_a_route_that_comes_after_the_start_is_refused(pages: Pages) -> None:
    async def forgotten() -> str:
        return "seen"

    pages.app.add_api_route("/forgotten", forgotten, methods=["GET"])
    async with pages.signed_in(PAT) as operator:
        answer = await operator.get("/forgotten")
    assert answer.status_code == 403 and "seen" not in answer.text


@pytest.mark.parametrize("login", [KIT, BO])
async def test_another_authority_and_another_worker_are_answered_as_if_there_were_no_alert(
    pages: Pages, login: str
) -> None:
    path = await pages.alert_of(ASH)
    async with pages.signed_in(login) as stranger:
        foreign = await stranger.get(path)
        unknown = await stranger.get(f"/alerts/{'0' * 32}")
        assert foreign.status_code == 404
        assert (foreign.text, _without_date(foreign)) == (unknown.text, _without_date(unknown))
        for malformed in ("/alerts/%00", "/alerts/..%2fx", f"/alerts/{'A' * 32}", f"/alerts/{'0' * 5000}"):
            assert (await stranger.get(malformed)).status_code == 404
        assert (await stranger.send_form(f"{path}/acknowledge")).status_code == 404
        assert "Casey" not in (await stranger.get("/inbox")).text
    [alert] = await pages.world.alerts()
    assert (alert.state, alert.opened_at) == (AlertState.OPEN, None)


async def test_a_social_worker_who_is_nobody_in_the_directory_sees_nobodys_alerts(pages: Pages) -> None:
    await store_login(
        pages.world.database, pages.world.keyring, "new@706.example.org", Role.SOCIAL_WORKER, NORTHFOLD, worker=None
    )
    path = await pages.alert_of(ASH)
    async with pages.signed_in("new@706.example.org") as worker:
        for asked in ("/inbox", path):
            answer = await worker.get(asked)
            assert answer.status_code == 403 and "Casey" not in answer.text


# Signing in


async def test_a_wrong_password_and_an_unknown_login_are_refused_alike(pages: Pages) -> None:
    def without_token(answer: httpx.Response) -> str:
        return FORM_TOKEN.sub("", answer.text)

    async with pages.client() as somebody:
        wrong = await somebody.sign_in(ASH, "wrong")
        unknown = await somebody.sign_in("nobody@example.org", "wrong")
        empty = await somebody.sign_in("", "wrong")
        strange = await somebody.sign_in("ash\x00@706.example.org", "x" * 5000)
    assert "The login or the password is wrong" in wrong.text
    assert {wrong.status_code, unknown.status_code, empty.status_code, strange.status_code} == {403}
    assert len({without_token(answer) for answer in (wrong, unknown, empty, strange)}) == 1


async def test_an_unknown_login_costs_as_much_as_a_wrong_password(pages: Pages) -> None:
    production = make_settings(pages.settings.data_dir, environment=Environment.PRODUCTION, login_failures_max=100)
    surroundings = pages.app.state.pages
    check = PasswordCheck(production, PageLimits())
    async with pages.world.database.writing() as connection:
        person = await pages.load_person(ASH)
        await logins.save_login(connection, pages.world.keyring, person, check._hasher.hash(PASSWORD))

    async def cost_s(login: str) -> float:
        began = time.process_time()
        assert await check.find_person(surroundings, login, "wrong") is None
        return time.process_time() - began

    known, unknown = await cost_s(ASH), await cost_s("nobody@example.org")
    assert known / 2 < unknown < known * 2


async def test_after_failures_a_login_rests_and_then_counts_anew(pages: Pages) -> None:
    failures_max = pages.settings.login_failures_max
    async with pages.client() as somebody:
        for _ in range(failures_max):
            assert (await somebody.sign_in(ASH, "wrong")).status_code == 403
        assert (await somebody.sign_in(ASH)).status_code == 403, "the right password does not wake a login that rests"
        assert (await somebody.sign_in(DEE)).status_code == 303, "nobody else rests"
        pages.world.clock.advance(timedelta(seconds=pages.settings.login_rest_s))
        for _ in range(failures_max - 1):
            assert (await somebody.sign_in(ASH, "wrong")).status_code == 403
        assert (await somebody.sign_in(ASH)).status_code == 303


async def test_success_sets_the_count_of_failures_back(pages: Pages) -> None:
    async with pages.client() as somebody:
        for _ in range(2):
            for _ in range(pages.settings.login_failures_max - 1):
                await somebody.sign_in(ASH, "wrong")
            assert (await somebody.sign_in(ASH)).status_code == 303


async def test_many_attempts_at_one_moment_are_no_more_than_the_limit(world: World) -> None:
    async def attempt() -> bool:
        async with world.database.writing() as connection:
            return await logins.take_attempt(
                connection, ASH, failures_max=5, rest=timedelta(minutes=5), now=world.clock.now()
            )

    assert sum(await asyncio.gather(*(attempt() for _ in range(30)))) == 5


async def test_attempts_are_on_record_and_never_what_was_typed(pages: Pages) -> None:
    async with pages.client() as somebody:
        await somebody.sign_in("my-password-in-the-wrong-field", "x")
        await somebody.sign_in(ASH, "wrong")
        await somebody.sign_in(ASH)
    assert [act for act in await pages.acts(NORTHFOLD) if act[0] == ASH] == [
        (ASH, "sign_in.attempted", ASH),
        (ASH, "sign_in.attempted", ASH),
        (ASH, "signed_in", ASH),
    ]
    assert (auth.UNKNOWN_LOGIN, "sign_in.attempted", auth.UNKNOWN_LOGIN) in await pages.acts(BROKER_OWNER)
    assert "wrong-field" not in str(await pages.acts(BROKER_OWNER))


async def test_a_session_ends_when_nobody_clicks_and_an_automatic_refresh_is_no_click(pages: Pages) -> None:
    idle = timedelta(minutes=pages.settings.session_idle_minutes_max)
    async with pages.signed_in(ASH) as worker:
        pages.world.clock.advance(idle - timedelta(seconds=1))
        assert (await worker.get("/inbox")).status_code == 200
        pages.world.clock.advance(idle - timedelta(seconds=1))
        assert (await worker.get("/inbox?refresh=auto")).status_code == 200, "the click before kept it open"
        pages.world.clock.advance(timedelta(seconds=1))
        ended = await worker.get("/inbox?refresh=auto")
        assert (ended.status_code, ended.headers["location"]) == (303, "/sign-in?next=/inbox")
        assert "Your session has ended" in (await worker.get("/sign-in")).text


async def test_a_session_ends_after_its_longest_time_however_much_it_is_used(pages: Pages) -> None:
    async with pages.signed_in(ASH) as worker:
        for _ in range(round(pages.settings.session_hours_max * 60 / 20) - 1):
            pages.world.clock.advance(timedelta(minutes=20))
            assert (await worker.get("/")).status_code == 303
            assert (await worker.get("/inbox")).status_code == 200
        pages.world.clock.advance(timedelta(minutes=20))
        assert (await worker.get("/inbox")).headers["location"] == "/sign-in?next=/inbox"
    async with pages.signed_in(DEE):
        pass
    async with pages.world.database.reading() as connection:
        assert (await connection.execute(text("select count(*) from sessions"))).scalar_one() == 1, (
            "ended ones are gone"
        )


async def test_signing_out_ends_the_session_for_whoever_kept_the_cookie(pages: Pages) -> None:
    async with pages.signed_in(ASH) as worker, pages.client() as thief:
        thief.cookies = httpx.Cookies(worker.cookies)
        assert (await thief.get("/inbox")).status_code == 200
        assert (await worker.post("/sign-out")).status_code == 400, "not without the form's token"
        answer = await worker.send_form("/sign-out")
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
        assert "session" not in worker.cookies
        assert (await thief.get("/inbox")).status_code == 303
    assert (ASH, "signed_out", ASH) in await pages.acts(NORTHFOLD)


async def test_a_sign_in_never_takes_over_a_token_and_ends_the_browsers_former_session(pages: Pages) -> None:
    async with pages.client() as worker, pages.client() as thief:
        worker.cookies.set("session", "planted-by-somebody-else", domain="127.0.0.1", path="/")
        assert (await worker.sign_in(ASH)).status_code == 303
        first = worker.cookies["session"]
        assert first != "planted-by-somebody-else" and len(first) >= 43
        thief.cookies.set("session", first, domain="127.0.0.1", path="/")
        assert (await worker.sign_in(ASH)).status_code == 303
        assert worker.cookies["session"] != first
        assert (await thief.get("/inbox")).status_code == 303


async def test_only_a_digest_of_the_session_is_kept(pages: Pages) -> None:
    async with pages.signed_in(ASH) as worker:
        token = worker.cookies["session"].encode()
        kept = b"".join(path.read_bytes() for path in pages.settings.data_dir.glob("broker.sqlite*"))
    assert token not in kept


async def test_a_new_password_ends_every_session_at_once(pages: Pages) -> None:
    async with pages.signed_in(ASH) as worker:
        await store_login(pages.world.database, pages.world.keyring, ASH, Role.SOCIAL_WORKER, NORTHFOLD, worker="W1")
        assert (await worker.get("/inbox")).status_code == 303


async def test_signing_in_leads_back_to_our_own_pages_only(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    async with pages.client() as worker:
        asked = await worker.get(path)
        assert asked.headers["location"] == f"/sign-in?next={path}"
        assert f'name="next" value="{path}"' in (await worker.get(asked.headers["location"])).text
        assert (await worker.sign_in(ASH, way_back=path)).headers["location"] == path
        for elsewhere in (
            "//example.org/inbox",
            "https://example.org",
            "/\\example.org",
            "/inbox\r\nX: y",
            "/sign-out",
        ):
            assert (await worker.sign_in(ASH, way_back=elsewhere)).headers["location"] == "/inbox"
            assert "example.org" not in (await worker.get("/sign-in", params={"next": elsewhere})).text


async def test_whoever_sends_a_form_after_the_session_reads_that_nothing_was_recorded(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    async with pages.signed_in(ASH) as worker:
        pages.world.clock.advance(timedelta(minutes=pages.settings.session_idle_minutes_max))
        for sent, leads_to in (
            (f"{path}/acknowledge", f"/sign-in?next={path}&lost=yes"),
            (f"/school/notices/{'a' * 32}/record", "/sign-in?next=/school&lost=yes"),
            ("/lists/held/x/confirm", "/sign-in?next=/lists&lost=yes"),
            ("/sign-out", "/sign-in"),
        ):
            asked = (await worker.send_form(sent)).headers["location"]
            assert asked == leads_to
            shown = (await worker.get(asked)).text
            assert ("What you have just sent was not recorded" in shown) == ("lost" in leads_to)
        assert (await worker.get(f"{path}/place")).headers["location"] == f"/sign-in?next={path}"
    [alert] = await pages.world.alerts()
    assert alert.state is AlertState.OPEN


async def test_nothing_is_taken_from_a_form_that_is_not_ours(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    async with pages.signed_in(ASH) as worker, pages.signed_in(DEE) as duty, pages.client() as nobody:
        for token in ("", "0" * 64, duty.form_token, worker.cookies["session"], "\udcff"):
            answer = await worker.post(
                f"{path}/acknowledge",
                content=f"form_token={token}".encode("utf-8", "replace"),
                headers={"content-type": "application/x-www-form-urlencoded"},
            )
            assert answer.status_code == 400 and "Nothing was changed" in answer.text
        assert (await worker.post(f"{path}/acknowledge", json={"form_token": worker.form_token})).status_code == 400
        files = {"form_token": ("x", worker.form_token)}
        assert (await worker.post(f"{path}/acknowledge", files=files)).status_code == 400
        many = {f"field{number}": "x" for number in range(50)}
        assert (await worker.send_form(f"{path}/acknowledge", **many)).status_code == 400
        fields = {"login": ASH, "password": PASSWORD, "form_token": worker.form_token}
        assert (await nobody.post("/sign-in", data=fields)).status_code == 400, "a form to sign in has its own cookie"
    [alert] = await pages.world.alerts()
    assert alert.state is AlertState.OPEN


async def test_cookies_are_closed_to_scripts_other_sites_and_plain_connections(
    pages: Pages, sqlite_url: str, tmp_path: Path
) -> None:
    production = make_settings(tmp_path, environment=Environment.PRODUCTION)
    app = create_app(
        database=pages.world.database,
        keyring=pages.world.keyring,
        clock=pages.world.clock,
        settings=production,
        rules=pages.world.rules,
        status=lambda: compose_status(pages.world.database, READY),
    )
    async with serve_app(app) as address, Client(address) as client:
        form = await client.get("/sign-in")
        cookie = form.headers["set-cookie"]
        assert cookie.startswith("__Host-sign-in=")
        token = FORM_TOKEN.search(form.text)
        assert token is not None
        answer = await client.post(
            "/sign-in",
            data={"form_token": token[1], "login": ASH, "password": PASSWORD},
            headers={"cookie": cookie.partition(";")[0]},
        )
        session = answer.headers.get_list("set-cookie")[0]
        assert session.startswith("__Host-session=")
        for each in (cookie, session):
            assert {part.strip().lower() for part in each.split(";")[1:]} == {
                "httponly",
                "path=/",
                "samesite=lax",
                "secure",
            }
        assert answer.headers["strict-transport-security"]
        assert "Development" not in form.text


async def test_a_program_asks_with_an_operators_login_and_only_for_numbers(pages: Pages) -> None:
    async with pages.client() as program:
        refused = await program.get("/metrics")
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
        for path in ("/metrics", "/_status"):
            assert (await program.get(path, auth=(PAT, PASSWORD))).status_code == 200
            assert (await program.get(path, auth=(PAT, "wrong"))).status_code == 401
            assert (await program.get(path, auth=(ASH, PASSWORD))).status_code == 403
            for broken in ("Basic", "Basic ???", "Bearer x", "Basic " + base64.b64encode(b"\xff\xfe").decode()):
                assert (await program.get(path, headers={"authorization": broken})).status_code == 401
        for path in ("/inbox", "/operations"):
            assert (await program.get(path, auth=(PAT, PASSWORD))).status_code == 303


async def test_a_program_that_asks_often_is_remembered_until_its_login_changes(pages: Pages) -> None:
    async def attempts() -> int:
        return [action for _, action, _ in await pages.acts(BROKER_OWNER)].count("sign_in.attempted")

    async with pages.client() as program:
        for _ in range(pages.settings.login_failures_max + 1):
            assert (await program.get("/metrics", auth=(PAT, PASSWORD))).status_code == 200
        assert await attempts() == 1
        pages.world.clock.advance(timedelta(seconds=PageLimits().programs_remembered_s))
        assert (await program.get("/metrics", auth=(PAT, PASSWORD))).status_code == 200
        assert await attempts() == 2
        person = await pages.load_person(PAT)
        async with pages.world.database.writing() as connection:
            await logins.save_login(connection, pages.world.keyring, person, CHEAP_HASHER.hash("another"))
        assert (await program.get("/metrics", auth=(PAT, PASSWORD))).status_code == 401
