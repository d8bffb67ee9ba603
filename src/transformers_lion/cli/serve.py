"""`lion serve`: starts the HTTP service of `transformers_lion.serving`."""

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, hide_progress_bars, report, require, run_action, speaker
from .demo import WRONG_COMMAND_LINE
from .options import Device, Dtype, Model, Optimize, Tagger

PACKAGES = ["fastapi", "uvicorn", "pydantic", "prometheus_client"]


class Engine(str, Enum):
    """What runs the service."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[
    Engine | None,
    typer.Option("--engine", help="local: this process, with uvicorn; ray: Ray Serve.",
                 show_default="local; ray with --address or --num-replicas"),
]  # fmt: skip
Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all interfaces.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of the model in requests.", show_default="the model's last part")
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option("--allow-host", help="Host from which images may be downloaded; repeatable.", show_default="none"),
]
MaxBatch = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Maximum questions per forward pass.")]
MaxRequests = Annotated[
    int, typer.Option("--max-requests", min=1, help="Requests at the same time; others get status 503.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds until a request gets status 504.")]
MaxImageMegabytes = Annotated[float, typer.Option("--max-image-megabytes", min=0.001, help="Largest image file.")]
MaxMegapixels = Annotated[float, typer.Option("--max-megapixels", min=0.001, help="Largest image.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer a request can ask for.")]
DrainTimeout = Annotated[
    float, typer.Option("--drain-timeout", min=0.1, help="Seconds that a shutdown waits for running requests.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster, such as auto.", show_default="a Ray instance of its own"),
]
NumReplicas = Annotated[int | None, typer.Option("--num-replicas", min=1, help="Replicas on Ray.", show_default="1")]
NumCpus = Annotated[
    float | None, typer.Option("--num-cpus", min=0, help="CPUs and threads per replica.", show_default="1")
]
NumGpus = Annotated[float | None, typer.Option("--num-gpus", min=0, help="GPUs per replica.", show_default="0")]
AppName = Annotated[
    str | None, typer.Option("--app", help="Name of the application on Ray Serve.", show_default="lion")
]
Stop = Annotated[
    str | None,
    typer.Option("--stop", metavar="NAME", help="Drain and delete this application on a Ray cluster, and exit."),
]


def serve(
    model: Model = None,
    engine: EngineOption = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    allow_host: AllowedHosts = None,
    batch_size: MaxBatch = 8,
    max_requests: MaxRequests = 128,
    timeout: Timeout = 60.0,
    max_image_megabytes: MaxImageMegabytes = 20.0,
    max_megapixels: MaxMegapixels = 50.0,
    max_new_tokens: MaxNewTokens = 512,
    drain_timeout: DrainTimeout = 120.0,
    address: Address = None,
    num_replicas: NumReplicas = None,
    num_cpus: NumCpus = None,
    num_gpus: NumGpus = None,
    app: AppName = None,
    stop: Stop = None,
    tagger: Tagger = None,
    device: Device = None,
    dtype: Dtype = None,
    optimize: Optimize = True,
    debug: Debug = False,
) -> None:
    """Serve captions, answers, boxes and tags over HTTP, also in OpenAI's format."""
    for_ray = {"--address": address, "--num-replicas": num_replicas, "--num-cpus": num_cpus, "--num-gpus": num_gpus,
               "--app": app, "--stop": stop}  # fmt: skip
    given = [option for option, value in for_ray.items() if value is not None]
    chosen = engine or (Engine.ray if given else Engine.local)
    if chosen is Engine.local and given:
        raise typer.BadParameter(f"{given[0]} needs --engine ray.")
    try:
        require("lion serve", "serve", [*PACKAGES, *(["ray"] if chosen is Engine.ray else [])])
    except ValueError as error:
        report(error)
        raise typer.Exit(WRONG_COMMAND_LINE) from error
    announce = speaker()

    def action() -> None:
        from ..serving.settings import Limits, served_name
        from .checkpoints import check_model, load_lion

        if stop is not None:
            from ..serving.ray_serve import stop_from_outside

            if not stop_from_outside(stop, address or "auto", drain_timeout):
                raise ValueError(f"{stop} is deleted, but not all running requests were answered.")
            announce(f"{stop} is deleted; its running requests were answered.")
            return
        hide_progress_bars()
        check_model(model)
        limits = Limits(
            max_batch_size=batch_size,
            max_requests=max_requests,
            timeout=timeout,
            max_image_bytes=round(max_image_megabytes * 1_000_000),
            max_megapixels=max_megapixels,
            max_decoded_megapixels=max(Limits.max_decoded_megapixels, max_megapixels),
            max_new_tokens=max_new_tokens,
            drain_timeout=drain_timeout,
            allowed_hosts=tuple(allow_host or ()),
        )
        load = partial(load_lion, absolute(model), absolute(tagger) or True, device, dtype and dtype.value, optimize)
        shown = name or served_name(model)
        if chosen is Engine.local:
            from ..serving.local import serve_locally
            from ..serving.service import Service

            serve_locally(Service(load, shown, limits), host, port, announce)
        else:
            from ..serving.ray_serve import APP_NAME, RaySettings, serve_on_ray

            settings = RaySettings(
                name=app or APP_NAME,
                address=address,
                host=host,
                port=port,
                num_replicas=num_replicas or 1,
                num_cpus=1 if num_cpus is None else num_cpus,
                num_gpus=num_gpus or 0,
            )
            serve_on_ray(load, shown, limits, settings, announce)

    run_action(action, debug)


def absolute(name: str | None) -> str | None:
    """Return the absolute path of a folder, or the name of a repository. Replicas may have another working folder."""
    return str(Path(name).expanduser().absolute()) if name and Path(name).expanduser().exists() else name
