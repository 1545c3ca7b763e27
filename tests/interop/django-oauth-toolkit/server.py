"""django-oauth-toolkit in a Django project of one file, with Django's own sign-in and the toolkit's own consent page.

The first line of stdin is its settings as JSON: {clients, accessTokenLife}; the first line of stdout says where it
listens. Its database lies in the working folder. It ends when stdin does, so never outlives its test.

    GET  /control/log                     what came to the token endpoint and its relatives, and what the server answered
    POST /control/settings                {accessTokenLife, tokenDelay}: seconds
    POST /control/accounts/NAME/create    a new account
    POST /control/accounts/NAME/delete    the account is gone
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import django
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

PASSWORD = "password of the interop tests"
PATHS = {"token": "/o/token/", "introspection": "/o/introspect/", "revocation": "/o/revoke_token/"}

given: dict[str, Any] = json.loads(sys.stdin.readline())
log: list[dict[str, Any]] = []
urlpatterns: list[Any] = []


def signing_key() -> str:
    """The server's own key, made anew at each start."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(32),
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "server.db",
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
            },
        }
    },
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "oauth2_provider",
    ],
    MIDDLEWARE=[
        f"{__name__}.Recorder",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # quick; these passwords are worth nothing
    LOGIN_URL="/admin/login/",
    STATIC_URL="/static/",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    OAUTH2_PROVIDER={
        "SCOPES": {"openid": "Who you are", "profile": "Your name", "read": "Read", "write": "Write"},
        "DEFAULT_SCOPES": ["read"],
        "ACCESS_TOKEN_EXPIRE_SECONDS": given["accessTokenLife"],
        "REFRESH_TOKEN_EXPIRE_SECONDS": 86400,
        "ROTATE_REFRESH_TOKEN": True,
        "REFRESH_TOKEN_REUSE_PROTECTION": True,
        "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": 0,
        "PKCE_REQUIRED": True,
        "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
        "OIDC_ENABLED": True,
        "OIDC_RSA_PRIVATE_KEY": signing_key(),
        "OAUTH2_VALIDATOR_CLASS": f"{__name__}.Validator",
        "ALWAYS_RELOAD_OAUTHLIB_CORE": True,
    },
)
django.setup()
sys.modules.setdefault("server", sys.modules[__name__])

from django.contrib import admin  # noqa: E402 - Django must be set up first
from django.contrib.auth.models import User  # noqa: E402
from oauth2_provider.decorators import protected_resource  # noqa: E402
from oauth2_provider.models import Application  # noqa: E402
from oauth2_provider.oauth2_validators import OAuth2Validator  # noqa: E402
from oauth2_provider.settings import oauth2_settings  # noqa: E402


class Validator(OAuth2Validator):  # type: ignore[misc]
    """Userinfo with a name, as the toolkit's documentation shows it."""

    def get_additional_claims(self) -> dict[str, Callable[[Any], str]]:
        """The claims beside ``sub``."""
        return {"name": lambda request: str(request.user.username)}


class Recorder:
    """Keeps the server's log: tokens appear as digests."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Let the request pass, and note what came of it."""
        if request.path not in PATHS.values():
            return self.get_response(request)
        if request.path == PATHS["token"]:
            time.sleep(given.get("tokenDelay", 0))
        form = request.POST.dict()
        response = self.get_response(request)
        token = form.get("refresh_token") or form.get("token")
        try:
            answered = json.loads(response.content or b"{}")
        except ValueError:
            answered = {}
        log.append(
            {
                "path": request.path,
                "status": response.status_code,
                "grantType": form.get("grant_type"),
                "presented": hashlib.sha256(token.encode()).hexdigest() if token else None,
                "error": answered.get("error"),
            }
        )
        return response


def me(request: HttpRequest) -> JsonResponse:
    """An API behind the toolkit's decorator."""
    return JsonResponse({"name": request.resource_owner.username})


@csrf_exempt
def control(request: HttpRequest, what: str, name: str = "", action: str = "") -> JsonResponse:
    """The tests' controls."""
    if what == "log":
        return JsonResponse(log, safe=False)
    if what == "settings":
        given.update(json.loads(request.body))
        settings.OAUTH2_PROVIDER["ACCESS_TOKEN_EXPIRE_SECONDS"] = given["accessTokenLife"]
        oauth2_settings.reload()
    elif action == "create":
        User.objects.create_user(name, password=PASSWORD, is_staff=True)
    elif action == "delete":
        User.objects.get(username=name).delete()
    else:
        return JsonResponse({}, status=404)
    return JsonResponse({})


urlpatterns += [
    path("admin/", admin.site.urls),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("api/me", protected_resource(scopes=["read"], advertise_metadata=True)(me)),
    path("api/write", protected_resource(scopes=["write"], advertise_metadata=True)(me)),
    path("api/bare", protected_resource(scopes=["read"])(me)),
    path("control/<str:what>", control),
    path("control/<str:what>/<str:name>/<str:action>", control),
]


class Quiet(WSGIRequestHandler):
    """Writes no access log to stderr."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


def main() -> None:
    """Serve until stdin ends."""
    call_command("migrate", verbosity=0)
    for client in given["clients"]:
        Application.objects.create(
            name=client["client_id"],
            client_id=client["client_id"],
            client_secret=client["client_secret"],
            redirect_uris=" ".join(client["redirect_uris"]),
            client_type=Application.CLIENT_CONFIDENTIAL,
            authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
            algorithm=Application.RS256_ALGORITHM,
        )
    server = ThreadedWSGIServer(("127.0.0.1", 0), Quiet)
    server.daemon_threads = True
    server.set_app(get_wsgi_application())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"base": f"http://127.0.0.1:{server.server_address[1]}"}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
