"""An RTSP server whose camera is a folder of JPEG frames, shown again and again as H.264; run by the system's Python.

    /usr/bin/python3 benchmarks/cameras/rtsp_server.py PORT FOLDER FPS

Needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-{base,good,ugly}. The address is
rtsp://127.0.0.1:PORT/door. Where the frames change their size, so does the stream, within the connection. Prints a line
when a client has connected, which sees the frames from the first on.
"""

import sys
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main() -> None:
    """Serve until killed."""
    port, folder, fps = sys.argv[1:]
    Gst.init(None)
    count = len(list(Path(folder).glob("*.jpg")))
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( multifilesrc location={folder}/%04d.jpg stop-index={count - 1} loop=true caps=image/jpeg,framerate={fps}/1"
        " ! jpegdec ! videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=4000"
        " ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.connect("media-configure", lambda *_: print("connected", flush=True))
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/door", factory)
    server.attach(None)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
