"""The service beside the offline pipeline: `python -m benchmarks.serving [--soak MINUTES]`.

A real `captioner serve` and the offline pipeline take turns on the same photos, with the same batch size and threads.
The load comes from other processes on the same machine. Prints one JSON object:

* `throughput_ratio`: photos per second with 32 clients, over those of the pipeline.
* `latency_ratio`: median seconds that a single client waits, over those of the pipeline for one photo at a time.
* `cpu_ratio`: processor seconds that the service spends on a photo, over those of the pipeline. Unlike the other two
  it hardly depends on what else the machine does.

With `--soak`, 16 clients instead send good, broken, odd and huge requests for that many minutes, and some leave early.
It reports statuses and memory, and fails if a status from 500 is not 503, or if memory grows.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioner.pipeline import CPU_BATCH, Captioner

PHOTOS = Path(__file__).resolve().parent.parent / "docs" / "photos"
CLIENTS, SOAK_CLIENTS = 32, 16
LOAD_PROCESSES = 2
"""Processes that the clients run in."""
BOUNDARY = "boundary"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
MAX_GROWTH = 1.1
"""Largest resting memory in the last quarter of a soak, over that in the second quarter."""
MEMORY_SECONDS = 2.0
"""Seconds between two readings of memory."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of JPEG files; default: docs/photos")
    parser.add_argument(
        "--number", type=int, default=320, help="photos of a round; files are repeated if there are fewer"
    )
    parser.add_argument("--single", type=int, default=20, help="photos of a round that are sent one at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="send mixed requests for this long instead")
    parser.add_argument("--odd", type=Path, metavar="DIR", help="a folder of odd files for --soak")
    parser.add_argument("--output", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args(argv)
    files = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jpg"))]
    if not files:
        parser.error(f"{arguments.photos}: no photos (*.jpg) in this folder")
    photos = [files[place % len(files)] for place in range(arguments.number)]
    with server(arguments.threads) as (pid, port):
        if arguments.soak:
            odd = [path.read_bytes() for path in sorted(arguments.odd.iterdir())] if arguments.odd else []
            found = soak(pid, port, files, odd, 60 * arguments.soak)
        else:
            torch.set_num_threads(arguments.threads)
            found = compare(pid, port, photos, photos[: arguments.single], arguments.rounds)
    print(json.dumps(found, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    return int(bool(found.get("failures")))


@contextmanager
def server(threads: int) -> Iterator[tuple[int, int]]:
    """The process id and the port of a running service."""
    command = [sys.executable, "-m", "captioner", "serve", "--port", "0", "--batch-size", str(CPU_BATCH)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            port = int(process.stderr.readline().partition(",")[0].rpartition(":")[2])
            while request(connect(port), "GET", "/readyz")[0] != 200:
                time.sleep(0.5)
            yield process.pid, port
        finally:
            process.terminate()
    if process.returncode != 0:
        raise SystemExit(f"captioner serve: exit code {process.returncode}")


def connect(port: int) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", port, timeout=120)


def request(connection: HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """The status and the body of a response."""
    connection.request(method, path, body, HEADERS if body is not None else {})
    response = connection.getresponse()
    return response.status, response.read()


def form(files: Sequence[bytes], field: str = "files") -> bytes:
    """A multipart body."""
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="photo.jpg"'
    parts = [f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + data + b"\r\n" for data in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def compare(pid: int, port: int, photos: Sequence[bytes], single: Sequence[bytes], rounds: int) -> dict[str, Any]:
    captioner = Captioner.from_pretrained(device="cpu")
    wanted = offline(captioner, photos)
    names = ("pipeline", "service", "pipeline_single", "service_single", "pipeline_cpu", "service_cpu")
    measured: dict[str, list[float]] = {name: [] for name in names}
    different = 0
    with ProcessPoolExecutor(LOAD_PROCESSES, multiprocessing.get_context("spawn")) as load:
        list(load.map(_send, *_shares(port, photos[: 2 * CLIENTS])))  # warm up
        for _ in range(rounds):
            cpu, start = time.process_time(), time.perf_counter()
            offline(captioner, photos)
            measured["pipeline"].append(time.perf_counter() - start)
            measured["pipeline_cpu"].append(time.process_time() - cpu)
            cpu, start = cpu_seconds(pid), time.perf_counter()
            shares = list(load.map(_send, *_shares(port, photos)))
            measured["service"].append(time.perf_counter() - start)
            measured["service_cpu"].append(cpu_seconds(pid) - cpu)
            found = [shares[place % LOAD_PROCESSES][place // LOAD_PROCESSES] for place in range(len(photos))]
            different += sum(one != other for one, other in zip(found, wanted, strict=True))
            for photo in single:
                start = time.perf_counter()
                captioner(photo)
                measured["pipeline_single"].append(time.perf_counter() - start)
                start = time.perf_counter()
                request(connect(port), "POST", "/v1/caption", form([photo]))
                measured["service_single"].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in measured.items()}
    return {
        "photos": len(photos),
        "batch_size": CPU_BATCH,
        "threads": torch.get_num_threads(),
        "seconds": {name: [round(value, 3) for value in measured[name]] for name in ("pipeline", "service")},
        "photos_per_second": {name: round(len(photos) / median[name], 2) for name in ("pipeline", "service")},
        "single_seconds": {name: round(median[f"{name}_single"], 4) for name in ("pipeline", "service")},
        "cpu_seconds": {name: round(median[f"{name}_cpu"], 2) for name in ("pipeline", "service")},
        "throughput_ratio": round(median["pipeline"] / median["service"], 3),
        "latency_ratio": round(median["service_single"] / median["pipeline_single"], 3),
        "cpu_ratio": round(median["service_cpu"] / median["pipeline_cpu"], 3),
        "captions_that_differ": different,
    }


def offline(captioner: Captioner, photos: Sequence[bytes]) -> list[str]:
    outcomes = captioner.stream(photos, batch_size=CPU_BATCH)
    return ["" if isinstance(each, Exception) else each.caption.text for each in outcomes]


def _shares(port: int, photos: Sequence[bytes]) -> tuple[list[int], list[Sequence[bytes]]]:
    """The arguments of `_send` in each load process."""
    return [port] * LOAD_PROCESSES, [photos[place::LOAD_PROCESSES] for place in range(LOAD_PROCESSES)]


def _send(port: int, photos: Sequence[bytes]) -> list[str]:
    """Captions from as many clients as fall to one load process."""
    count = CLIENTS // LOAD_PROCESSES

    def client(place: int) -> list[str]:
        connection = connect(port)
        answers = [request(connection, "POST", "/v1/caption", form([photo])) for photo in photos[place::count]]
        return [json.loads(body)["results"][0]["caption"] if status == 200 else str(status) for status, body in answers]

    with ThreadPoolExecutor(count) as clients:
        found = list(clients.map(client, range(count)))
    return [found[place % count][place // count] for place in range(len(photos))]


def processes(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # Children of all threads: a decoder is started by the thread that needs it.
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += [each for each in (task / "children").read_text().split() if each not in children]
    return [pid, *map(int, children)]


def cpu_seconds(pid: int) -> float:
    """Processor seconds of a service and its decoders."""
    ticks = 0
    for each in processes(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pids: Sequence[int]) -> float:
    """MiB that processes hold for themselves alone."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just been replaced
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total / 1024


def soak(pid: int, port: int, photos: Sequence[bytes], odd: Sequence[bytes], seconds: float) -> dict[str, Any]:
    end = time.monotonic() + seconds
    statuses: Counter[str] = Counter()
    sizes: dict[str, list[float]] = {"server": [], "decoders": []}
    threads = [1]
    with ThreadPoolExecutor(SOAK_CLIENTS) as clients:
        counts = [clients.submit(_disturb, port, photos, odd, end, seed) for seed in range(SOAK_CLIENTS)]
        while time.monotonic() < end:
            time.sleep(MEMORY_SECONDS)
            sizes["server"].append(memory([pid]))
            sizes["decoders"].append(memory(processes(pid)[1:]))
            threads.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        for count in counts:
            statuses += count.result()
    resting = {name: [low(each) for each in quarters(measured)] for name, measured in sizes.items()}
    failures = [status for status in statuses if status.startswith("5") and status != "503"]
    # Memory goes up and down with the size of the photos, so what is left between them is compared; the first quarter
    # has the start in it.
    failures += [f"memory of {name} grows" for name, (_, then, _, now) in resting.items() if now > MAX_GROWTH * then]
    if request(connect(port), "POST", "/v1/caption", form([photos[0]]))[0] != 200:
        failures.append("no caption afterwards")
    return {
        "minutes": round(seconds / 60, 1),
        "statuses": dict(statuses.most_common()),
        "median_memory_mib_by_quarter": {
            name: [round(statistics.median(each)) for each in quarters(measured)] for name, measured in sizes.items()
        },
        "resting_memory_mib_by_quarter": {name: [round(size) for size in each] for name, each in resting.items()},
        "most_memory_mib": {name: round(max(each)) for name, each in sizes.items()},
        "most_threads": max(threads),
        "failures": failures,
    }


def quarters(sizes: Sequence[float]) -> list[Sequence[float]]:
    """Four parts in order, as long as each other; of fewer than four sizes, each has all."""
    length = len(sizes) // 4
    return [sizes[place * length :][:length] or sizes for place in range(4)]


def low(sizes: Sequence[float]) -> float:
    """What nine of ten are above: a leak raises it, a large photo does not."""
    return float(np.quantile(sizes, 0.1))


def _disturb(port: int, photos: Sequence[bytes], odd: Sequence[bytes], end: float, seed: int) -> Counter[str]:
    """Random requests until the end, and how they were answered."""
    generator, statuses = random.Random(seed), Counter[str]()
    huge = b"\xff" * (33 * 2**20)
    while time.monotonic() < end:
        photo = generator.choice(photos)
        kind = generator.random()
        path, body = "/v1/caption", form([photo])
        if kind < 0.2:
            path = f"/v1/caption?beam={generator.randint(1, 16)}&num_captions={generator.randint(1, 16)}"
        elif kind < 0.3:
            body = form(generator.choices(photos, k=generator.randint(2, 20)))
        elif kind < 0.35:
            path, body = "/v1/inspect", form([photo], "file")
        elif kind < 0.5 and odd:
            body = form([generator.choice(odd)])
        elif kind < 0.6:
            cut = generator.randrange(len(body))
            body = body[:cut] + generator.randbytes(20) + body[cut + 20 :]
        elif kind < 0.65:
            body = huge
        elif kind < 0.7:
            path = generator.choice(("/", "/v1/model", "/v1/caption?beam=0", "/metrics", "/v1/inspect"))
        connection = connect(port)
        try:
            if kind > 0.9:  # leave early
                connection.request("POST", path, body, HEADERS)
                time.sleep(generator.uniform(0, 0.5))
                statuses["left"] += 1
            else:
                statuses[str(request(connection, "POST", path, body)[0])] += 1
        except (HTTPException, OSError) as error:
            statuses[type(error).__name__] += 1
        finally:
            connection.close()
    return statuses


if __name__ == "__main__":
    sys.exit(main())
