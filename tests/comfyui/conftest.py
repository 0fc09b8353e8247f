"""A real ComfyUI with this pack in it, on the CPU, driven over HTTP and its websocket.

``COMFYUI_PATH`` names a ComfyUI checkout and ``COMFYUI_PYTHON`` the interpreter that has its requirements
(default: the one that runs pytest). Without the first, every test of this folder is skipped. Graphs go in as
API workflows: ``{node id: {"class_type": ..., "inputs": {...}}}``.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
PACK = "ComfyUI-HappyHorse"  # the hyphen matters: it is no Python name, and users have it
START_SECONDS = 180
LOG_LINES = 60  # of the server's log, shown with a failure
PREVIEWS = (1, 4)  # numbers of the binary events that hold an image: bare, and with metadata before it


def pytest_collection_modifyitems(items):
    absent = None if os.environ.get("COMFYUI_PATH") else "COMFYUI_PATH does not name a ComfyUI checkout"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            if absent:
                item.add_marker(pytest.mark.skip(reason=absent))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    server = getattr(item, "funcargs", {}).get("comfy")
    if report.failed and server:
        report.sections.append(("ComfyUI's log", server.log_tail()))
    return report


@pytest.fixture(scope="session")
def host_program(root, tiny_models, tmp_path_factory):
    """``host_program(name, prepare)`` runs a host_*.py in ComfyUI's interpreter and returns what it reports.

    ``prepare`` is given the program's folder of work first.
    """

    def run(program, prepare=None):
        work = tmp_path_factory.mktemp(Path(program).stem)
        if prepare:
            prepare(work)
        python = os.environ.get("COMFYUI_PYTHON") or sys.executable
        command = [python, HERE / program, os.environ["COMFYUI_PATH"], root, tiny_models, work]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=work, timeout=900
        )
        lines = [line for line in result.stdout.splitlines() if line.startswith("REPORT ")]
        if result.returncode or not lines:
            pytest.fail(f"{program} ended with {result.returncode}:\n{result.stderr[-4000:]}", pytrace=False)
        return json.loads(lines[0].removeprefix("REPORT "))

    return run


@pytest.fixture(scope="session")
def comfy(root, tiny_models, tmp_path_factory):
    """The running server. Its ``base`` folder holds the pack's copy, the tiny models, ``input`` and ``output``."""
    base = tmp_path_factory.mktemp("comfyui")
    install(root, base / "custom_nodes" / PACK)
    shutil.copytree(tiny_models, base / "models")
    server = Server(
        Path(os.environ["COMFYUI_PATH"]), os.environ.get("COMFYUI_PYTHON") or sys.executable, base
    )
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def tiny_names() -> dict[str, str]:
    """{a file that the workflows name: its stand-in in the tiny set}"""
    return {
        "distill-merger_bf16.safetensors": "happyhorse_tiny_distilled.safetensors",
        "daVinci-MagiHuman/base": "happyhorse_tiny_base",
        "daVinci-MagiHuman/1080p_sr": "happyhorse_tiny_sr_1080p.safetensors",
        "t5gemma-9b-9b-ul2": "t5gemma_tiny",
        "wan2.2_vae.safetensors": "Wan2.2_VAE_tiny.pth",
        "TurboV3-Wan22-TinyShallow_7_7.safetensors": "turbo_vae_tiny/turbo_tiny.ckpt",
        "stable_audio_open_1.0.safetensors": "oobleck_audio_tiny.safetensors",
    }


def install(root: Path, folder: Path):
    """Copy what git would publish of the checkout, committed or not; caches stay behind."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if (root / name).is_file():  # deleted files stay listed until the deletion is committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)


class Server:
    """A ComfyUI process and what its users can ask of it."""

    def __init__(self, checkout: Path, python: str, base: Path):
        if not (checkout / "main.py").is_file():
            pytest.fail(f"COMFYUI_PATH={checkout} holds no main.py", pytrace=False)
        self.base = base
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = base / "server.log"
        # No proxy stands between a test and its own machine, whatever the environment says.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-api-nodes"]  # they, and the page, would ask the internet
        # PYTHONPATH may hold packages of the interpreter that runs pytest.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=checkout,
                env=environment | {"HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_up(self):
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                return self.get("/system_stats")
            time.sleep(0.1)
        ended = (
            f"ended with {self.process.returncode}" if self.process.poll() is not None else "did not answer"
        )
        pytest.fail(f"ComfyUI {ended}; its log ends:\n{self.log_tail()}", pytrace=False)

    def stop(self):
        """End the whole process group: gently, then not."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)

    def read(self, path: str, data: bytes | None = None, content_type: str = "application/json") -> bytes:
        """The body that a path answers with; POST where there is data. An answer of 400 or more raises."""
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": content_type} if data else {}
        )
        try:
            with self._opener.open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{path} answered {error.code}: {refusal(error.read())}") from None

    def get(self, path: str):
        return json.loads(self.read(path))

    def post(self, path: str, content=None):
        """What the server answers to this JSON; None where it answers nothing."""
        body = self.read(path, json.dumps({} if content is None else content).encode())
        return json.loads(body) if body else None

    def queue(self, workflow: dict, extra_data: dict | None = None, client_id: str | None = None) -> str:
        """Ask for a run; returns the prompt's id. A graph that does not validate raises with every node's errors."""
        prompt = {"prompt": workflow, "extra_data": extra_data or {}}
        return self.post("/prompt", prompt | ({"client_id": client_id} if client_id else {}))["prompt_id"]

    def finish(self, prompt_id: str, timeout: float = 120) -> dict:
        """The history entry of a prompt, once it has ended in whatever way."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return entry
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} was not done after {timeout} s")

    def run(self, workflow: dict, timeout: float = 120, extra_data: dict | None = None) -> dict:
        """The history entry of a run that went well; any other raises with the node's error and traceback."""
        entry = self.finish(self.queue(workflow, extra_data), timeout)
        for kind, data in entry["status"]["messages"]:
            if kind in ("execution_error", "execution_interrupted"):
                raise RuntimeError(execution_failure(kind, data))
        return entry

    def files(self, entry: dict) -> list[dict]:
        """What a run saved or showed, each as ``{"filename", "subfolder", "type"}``, ready for ``view(**file)``."""
        keys = ("filename", "subfolder", "type")
        shown = [
            item for output in entry["outputs"].values() for values in output.values() for item in values
        ]
        return [
            {key: item[key] for key in keys}
            for item in shown
            if isinstance(item, dict) and "filename" in item
        ]

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self.read(f"/view?{query}")

    def interrupt(self, prompt_id: str | None = None):
        """Press stop: for this prompt if it is the one running, without an id for any."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def forget(self):
        """Unload the models and drop every cached result, so that the next run does all of its work."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        # The wish is granted between two prompts, maybe only after the next one: let that be a small one.
        small = {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}}
        self.run({"0": small, "1": {"class_type": "PreviewImage", "inputs": {"images": ["0", 0]}}})

    @contextlib.contextmanager
    def events(self):
        """Listen to the websocket; queue with ``client_id=events.client_id`` so that it hears of the run."""
        websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
        client_id = uuid.uuid4().hex
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}"
        connection = websocket.create_connection(address, timeout=60, http_no_proxy=["127.0.0.1"])
        try:
            flags = {"supports_preview_metadata": True}
            connection.send(json.dumps({"type": "feature_flags", "data": flags}))
            yield Events(connection, client_id)
        finally:
            connection.close()

    def upload(self, filename: str, content: bytes) -> str:
        """Put a file into ``input``; returns the name that LoadImage, LoadAudio and LoadVideo take."""
        border = uuid.uuid4().hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{border}--\r\n".encode()
        return json.loads(self.read("/upload/image", body, f"multipart/form-data; boundary={border}"))["name"]

    def upload_image(self, filename: str, pixels: np.ndarray) -> str:
        """``pixels``: [H, W, 3], 0 to 255; ``filename`` ends in .png."""
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return self.upload(filename, file.getvalue())

    def upload_audio(self, filename: str, waveform: np.ndarray, sample_rate: int) -> str:
        """``waveform``: [C, S], -1 to 1; ``filename`` ends in .wav. Stored as 16-bit PCM."""
        file = io.BytesIO()
        with wave.open(file, "wb") as wav:
            wav.setnchannels(len(waveform))
            wav.setsampwidth(2)
            wav.setframerate(sample_rate)
            wav.writeframes((waveform.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
        return self.upload(filename, file.getvalue())

    def resident_memory(self) -> int:
        """Bytes of the server's process that are in memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def log(self) -> str:
        """All that the server has printed so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(encoding="utf-8", errors="replace"))

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_LINES:])


@dataclass(frozen=True, slots=True)
class Event:
    """One message: ``type`` and ``data`` as the server names them, or a "preview" with its image (JPEG or PNG)."""

    type: str
    data: dict
    time: float  # time.monotonic() of its arrival
    image: bytes = b""


class Events:
    """What a websocket has heard; ``seen`` keeps all of it in order."""

    def __init__(self, connection, client_id: str):
        self.client_id, self.seen = client_id, []
        self._connection = connection

    def until(self, type: str, timeout: float = 60, **values) -> Event:
        """Listen up to the next event of this type whose data holds these values, and return it.

        A run that fails or is stopped meanwhile raises at once.
        """
        from websocket import WebSocketTimeoutException  # installed, or there would be no connection

        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self._connection.settimeout(left)
            try:
                event = decode(self._connection.recv())
            except WebSocketTimeoutException:
                break
            self.seen.append(event)
            if event.type == type and values.items() <= event.data.items():
                return event
            if event.type in ("execution_error", "execution_interrupted"):
                raise RuntimeError(execution_failure(event.type, event.data))
        raise TimeoutError(f"no event {type} {values or ''} within {timeout} s")

    def of(self, type: str) -> list[Event]:
        """The events of one type seen so far."""
        return [event for event in self.seen if event.type == type]


def decode(message: str | bytes) -> Event:
    """Text is JSON; binary is a big-endian event number, then for number 4 the length of JSON metadata and it."""
    now = time.monotonic()
    if isinstance(message, str):
        content = json.loads(message)
        return Event(content["type"], content.get("data") or {}, now)
    number, second = struct.unpack_from(">II", message)
    if number not in PREVIEWS:
        return Event(f"binary {number}", {}, now, message[4:])
    end = 8 + (second if number == 4 else 0)
    return Event("preview", json.loads(message[8:end] or b"{}"), now, message[end:])


def execution_failure(kind: str, data: dict) -> str:
    where = f"{data['node_type']} ({data['node_id']})"
    if kind == "execution_interrupted":
        return f"interrupted in {where}"
    return f"{where}: {data['exception_type']}: {data['exception_message']}\n{''.join(data['traceback'])}"


def refusal(body: bytes) -> str:
    """A refused prompt as lines a person can read; any other body as it is."""
    try:
        content = json.loads(body)
        lines = [f"{content['error']['message']} {content['error']['details']}"]
        for node_id, node in (content["node_errors"] or {}).items():
            lines += [
                f"{node['class_type']} ({node_id}): {e['message']}: {e['details']}" for e in node["errors"]
            ]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
    return "\n".join(lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
