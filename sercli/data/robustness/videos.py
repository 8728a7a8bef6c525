"""Video files to frames and back, by PyAV (FFmpeg), which only ImageNet-P needs."""

from __future__ import annotations

import os
import stat
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sercli.errors import SerError, UserError
from sercli.runs.reading import what_is

if TYPE_CHECKING:
    from collections.abc import Iterator

_CRF = "12"  # x264's quality: near lossless


class UnreadableVideo(SerError):
    """A video that cannot be decoded to its end: status 2.

    Args:
        path: The file, as a person would name it.
        reason: What is wrong with it, without the path.
    """

    exit_status = 2

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read the video {path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableVideo], tuple[str, str]]:
        return UnreadableVideo, (self.path, self.reason)  # as UnreadableImage


def require_av() -> Any:
    """The module `av`.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise UserError(
            "PyAV is not installed",
            "videos, which ImageNet-P consists of, are decoded by it",
            "pip install 'sercli[robustness]'",
        ) from error


def read_frames(path: str) -> NDArray[np.uint8]:
    """All frames of a video, uint8 [T, H, W, 3] in RGB.

    Raises:
        UserError: PyAV is not installed.
        UnreadableVideo: The file is missing, cut short, corrupt or no video.
    """
    return np.stack(list(_frames(path)))


def read_size(path: str) -> tuple[int, int, int]:
    """Frames, width and height as a video's header states them.

    Raises:
        As `read_frames`.
    """
    av = require_av()
    try:
        _require_regular(path)
        with av.open(path) as container:
            stream = _video_in(container, path)
            return stream.frames, stream.codec_context.width, stream.codec_context.height
    except (av.error.FFmpegError, OSError) as error:
        raise UnreadableVideo(path, _reason(error)) from error


def _frames(path: str) -> Iterator[NDArray[np.uint8]]:
    av = require_av()
    decoded = 0
    try:
        _require_regular(path)
        with av.open(path) as container:
            stream = _video_in(container, path)
            stream.codec_context.thread_count = 1  # the loader's workers fill the cores
            for frame in container.decode(stream):
                decoded += 1
                yield frame.to_ndarray(format="rgb24")
            stated = stream.frames
    except (av.error.FFmpegError, OSError) as error:
        raise UnreadableVideo(path, _reason(error)) from error
    if not decoded or decoded < stated:
        raise UnreadableVideo(path, f"{decoded} frames could be decoded of {stated}")


def _require_regular(path: str) -> None:
    """FFmpeg would wait for somebody to write into a pipe."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise UnreadableVideo(path, f"it is {what_is(mode)}, no regular file")


def _video_in(container: Any, path: str) -> Any:
    """The container's first video; a file whose index is cut may have one without a decoder."""
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
        raise UnreadableVideo(path, "it has no video that can be decoded")
    return streams[0]


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames as H.264 in full colour resolution, as ImageNet-P's files are.

    Args:
        path: *.mp4.
        frames: uint8 [T, H, W, 3], RGB.

    Raises:
        UserError: PyAV is not installed.
    """
    av = require_av()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": _CRF}
        for levels in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is cut short, corrupt or no video"
