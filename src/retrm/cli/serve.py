"""`retrm serve`: reward models behind every trainer's protocol, on one port."""

import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrm.cli.console import err, print_json
from retrm.cli.settings import read_settings
from retrm.service.access import TOKEN_VARIABLE, read_token


def serve(
    *models: str,
    name: list[str] = [],  # noqa: B006  (cyclopts copies it)
    alias: list[str] = [],  # noqa: B006
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    no_token: bool = False,
    known_as: list[str] = [],  # noqa: B006
    no_sampling: bool = False,
    open_metrics: bool = False,
    device: str = "cpu",
    config: Path | None = None,
    json: bool = False,
) -> None:
    """Serve reward models: verl, OpenRLHF, TRL, vLLM's and SGLang's clients are answered as they expect.

    A page to try them is at /, the models at /v1/models, Prometheus at /metrics. Scores are raw
    unless a request asks otherwise; what is too long is refused unless a request says what to do; what was
    cut or ignored is said in the reply. Heads on one backbone read an answer once.

        retrm serve runs/elhsr
        retrm serve math=runs/elhsr runs/harp --port 8001
        RETRM_TOKEN=secret retrm serve runs/elhsr --host 0.0.0.0

    The server listens when every model gave its stored scores again. SIGTERM and Ctrl-C finish what was
    taken; a second one ends at once.

    Parameters
    ----------
    models
        Folders made by retrm fit, each perhaps as NAME=FOLDER; or any other scorer: hf:PATH,
        call:MODULE:NAME, longest, ... The first judges requests that name none.
    name
        Names of the models in their order; by default those of their folders.
    alias
        A further name that requests may use, as ALIAS=NAME, or ALIAS alone where one model is served: verl
        sends the path of its reward model. Names that nobody gave are refused.
    model
        Where the backbone of the folders lies now.
    host
        Address to listen on. Others than this machine's own need a key.
    port
        0 = any that is free.
    token_file
        File with the key that requests must carry (Authorization: Bearer KEY). Without it the
        environment variable RETRM_TOKEN, if it is set.
    no_token
        Let everybody ask who can reach the host.
    known_as
        Names of this server that a proxy in front of it hands on. Without a key a server on this
        machine answers to its addresses and localhost only, so that no web page reaches it by a name of its own.
    no_sampling
        The page at / may not have answers drawn, which share the device with what is scored.
    open_metrics
        Answer /metrics without the key.
    device
        cpu, cuda, cuda:1, ...
    config
        TOML file with limits in a table [serve]: tokens_per_batch, window_ms, max_items, max_tokens,
        max_body_bytes, max_waiting_items, max_waiting_tokens, max_waiting_bytes, max_jobs, deadline_s,
        drain_s.
    json
        Print one JSON object with address and models on stdout once it listens.
    """
    from retrm.errors import MissingExtraError, RecipeError
    from retrm.service.settings import settings_of

    try:
        from retrm.service.app import create_app
        from retrm.service.server import is_loopback, listen, run, url_of
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}; run: pip install 'retrm[local,serve]'"
        ) from error
    from retrm.service.core import Service
    from retrm.service.models import open_registry

    if not models:
        raise RecipeError(
            "got no model; expected a folder made by retrm fit: retrm serve runs/elhsr"
        )
    settings = settings_of(read_settings(config, ("serve",)).get("serve", {}), f"{config}: serve.")
    token = read_token(token_file, os.environ)
    with listen(host, port) as bound:
        is_local = is_loopback(bound)
        check_exposed(host, token, no_token=no_token, is_local=is_local)
        err.print(f"opening {', '.join(models)}")
        registry = open_registry(models, names=name, aliases=alias, model=model, device=device)
        service = Service(registry, settings)
        app = create_app(
            service,
            token=None if no_token else token,
            has_sampling=not no_sampling,
            has_open_metrics=open_metrics,
            hosts=[one.lower() for one in (*known_as, host)] if is_local else None,
        )
        url = url_of(bound)
        _log_to_stderr()
        _say(url, [one.info for one in registry], has_token=token is not None and not no_token)
        if json:
            print_json({"url": url, "models": [asdict(one.info) for one in registry]})
            sys.stdout.flush()
        run(app, service, bound)
    err.print("ended; all that was taken is answered" if not service.n_requests else "ended")


def check_exposed(host: str, token: str | None, *, no_token: bool, is_local: bool) -> None:
    """Refuse to be open to others by accident.

    Raises:
        RecipeError: others could ask without a key, and nobody said that they may.
    """
    from retrm.errors import RecipeError

    if is_local or token is not None or no_token:
        return
    raise RecipeError(
        f"host {host} can be reached from other machines, and there is no key; set {TOKEN_VARIABLE} or "
        "--token-file, or say --no-token if everybody may ask"
    )


def _say(url: str, models: list[Any], *, has_token: bool) -> None:
    """Where it listens, what is served, and a line for each trainer."""
    for number, one in enumerate(models):
        facts = [one.method, f"on {one.backbone}" if one.backbone else ""]
        facts += [f"up to {one.context_length:,} tokens"] if one.context_length else []
        facts += [f"also called {', '.join(one.aliases)}"] if one.aliases else []
        first = " (judges where no model is named)" if number == 0 and len(models) > 1 else ""
        err.print(f"  {one.name}: {', '.join(fact for fact in facts if fact)}{first}", markup=False)
    key = " -H 'Authorization: Bearer '$RETRM_TOKEN" if has_token else ""
    lines = {
        "page": f"{url}/",
        # Not --json: curl has it since 7.82 only.
        "curl": f"curl {url}/v1/reward{key} -H 'Content-Type: application/json' -d "
        """'{"prompt": "What is 3 + 4?", "candidates": ["7.", "It is 8."]}'""",
        "verl": f"RETRM_URL={url}  reward.custom_reward_function.path=pkg://retrm.adapters.verl",
        "OpenRLHF": f"--reward.remote_url {url}/get_reward",
        "TRL": f"RETRM_URL={url} trl grpo --reward_funcs retrm.adapters.trl.retrm_reward ...",
    }
    err.print(f"listening on {url}" + ("" if has_token else ", without a key"), markup=False)
    for what, line in lines.items():
        err.print(f"  {what:9} {line}", markup=False, soft_wrap=True)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("retrm.service", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
