"""Stand-ins for what a test machine lacks: a model of the exact 130M shape, and a hub on loopback that serves it.

python -m tests.helpers.standins make DIR
python -m tests.helpers.standins serve DIR --id state-spaces/mamba-130m-hf --port 8130
HF_ENDPOINT=http://127.0.0.1:8130 make mechint
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.models.mamba import Mamba, MambaConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_hf(model: Mamba, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face directory of ``model``: config.json and model.safetensors."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in to_hf_state_dict(model).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hf_config(model), indent=2) + "\n")
    return directory


def save_tokenizer(directory: Path, vocab_size: int) -> Path:
    """A byte-level BPE tokenizer.json trained on Python's own help pages."""
    import pydoc_data.topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def make_mamba_130m(directory: str | Path, seed: int = 0) -> Path:
    """A Hugging Face directory of the exact shape of state-spaces/mamba-130m-hf, with the published initialisation."""
    config = MambaConfig(vocab_size=50280, d_model=768, n_layer=24, d_inner=1536, d_state=16, d_conv=4, dt_rank=48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Mamba(config)
    return save_tokenizer(save_hf(model, Path(directory)), 50277)


@dataclass
class Hub:
    """The files that the stand-in serves, and the requests that it got."""

    models: dict[str, Path]
    requests: list[str] = field(default_factory=list)
    """``METHOD path range``, in order."""
    break_after: int | None = None
    """Bytes of a weights file after which the connection is dropped, once."""
    pace: int | None = None
    """Bytes in each tenth of a second; None for as fast as it goes."""
    status: int | None = None
    """Answer everything with this, as a hub that is down does."""
    url: str = ""
    commit: str = COMMIT


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's protocol that its client uses for a public model: tree, metadata, files with ranges."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
        if self.hub.status is not None:
            return self.reply(self.hub.status, {}, b"")
        for repo, directory in self.hub.models.items():
            if path.startswith(f"api/models/{repo}"):
                return self.describe(repo, directory, path)
            for revision in ("main", COMMIT):
                if path.startswith(start := f"{repo}/resolve/{revision}/"):
                    return self.send(directory / path.removeprefix(start), body)
        return self.reply(404, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}')

    def describe(self, repo: str, directory: Path, path: str) -> None:
        files = sorted(item for item in directory.iterdir() if item.is_file())
        value: Any = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": item.name} for item in files]}
        if "/tree/" in path:
            value = [
                {"type": "file", "path": item.name, "size": item.stat().st_size, "oid": etag(item)} for item in files
            ]
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, path: Path, body: bool) -> None:
        if not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return self.reply(404, headers, b'{"error":"Entry not found"}')
        size, start = path.stat().st_size, 0
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.send_response(206 if wanted else 200)
        for name, value in (headers | {"Content-Length": str(size - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.stream(path, start, size)

    def stream(self, path: Path, start: int, size: int) -> None:
        end = size
        if self.hub.break_after is not None and size > self.hub.break_after:
            end, self.hub.break_after, self.close_connection = start + self.hub.break_after, None, True
        with open(path, "rb") as file:
            file.seek(start)
            while (left := min(end, size) - file.tell()) > 0:
                self.wfile.write(file.read(min(left, self.hub.pace or 1 << 20)))
                if self.hub.pace:
                    time.sleep(0.1)

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None: ...


ETAGS: dict[tuple[str, int], str] = {}


def etag(path: Path) -> str:
    """SHA-256 of large files and SHA-1 of others, as the hub has them."""
    key = (str(path), path.stat().st_mtime_ns)
    if key not in ETAGS:
        large = path.suffix in (".safetensors", ".bin")
        with open(path, "rb") as file:
            digest = hashlib.sha256() if large else hashlib.sha1(usedforsecurity=False)
            while block := file.read(1 << 20):
                digest.update(block)
        ETAGS[key] = digest.hexdigest()
    return ETAGS[key]


@contextlib.contextmanager
def serve(models: dict[str, Path], port: int = 0) -> Iterator[Hub]:
    """A hub on loopback; ``hub.url`` is what HF_ENDPOINT must be."""
    hub = Hub(models)
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a model of the exact 130M shape")
    make.add_argument("directory", type=Path)
    make.add_argument("--seed", type=int, default=0)
    serving = commands.add_parser("serve", help="serve a directory as a hub model, until interrupted")
    serving.add_argument("directory", type=Path)
    serving.add_argument("--id", default="state-spaces/mamba-130m-hf")
    serving.add_argument("--port", type=int, default=8130)
    arguments = parser.parse_args()
    if arguments.command == "make":
        print(make_mamba_130m(arguments.directory, arguments.seed))
        return
    with serve({arguments.id: arguments.directory}, arguments.port) as hub:
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
