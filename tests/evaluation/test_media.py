"""Videos and animations: frames in order, upright, numbered; there and back; damaged ones."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored_runs import Brightness, Level, fakes, write_run

from pri3d.api.predict import predict
from pri3d.errors import DataError
from pri3d.evaluation.media import open_media, write_video
from pri3d.labelled._shared.decoding import read_ids

__all__ = ["fakes"]  # a fixture

VALUES = [0, 40, 80, 120, 160, 200, 240]
NAMES = ["dark", "bright"]


def write_clip(path: Path, rotation: int = 0, codec: str = "libx264") -> Path:
    """Seven frames of 64x48, each of one grey value but a white upper left quarter."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for value in VALUES:
            pixels = np.full((48, 64, 3), value, np.uint8)
            pixels[:24, :32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_animation(path: Path) -> Path:
    frames = [Image.fromarray(np.full((48, 64), value, np.uint8)).convert("RGB") for value in VALUES]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


@pytest.fixture
def run(tmp_path: Path, fakes: None) -> Path:
    return write_run(tmp_path / "run", Brightness(NAMES), {"last": Level(0), "best": Level(0)}, data="x")


class TestVideo:
    @pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.MOV", "mpeg4"), ("a.mkv", "libx264")])
    def test_frames_in_order(self, tmp_path: Path, name: str, codec: str) -> None:
        media = open_media(write_clip(tmp_path / name, codec=codec))
        pictures = [(picture.name, picture.source, picture.load()) for picture in media.pictures]
        assert [name for name, _, _ in pictures] == [f"a-{k:06d}" for k in range(7)]
        assert pictures[3][1] == f"{tmp_path / name} frame 3"
        assert [float(pixels[40, 60].mean()) for _, _, pixels in pictures] == pytest.approx(VALUES, abs=6)
        assert media.rate == 10
        assert media.total in (None, 7)

    def test_every_so_many(self, tmp_path: Path) -> None:
        media = open_media(write_clip(tmp_path / "a.mp4"), every=3)
        assert [picture.name for picture in media.pictures] == ["a-000000", "a-000003", "a-000006"]
        assert (media.total, media.rate) == (3, Fraction(10, 3))

    @pytest.mark.parametrize(("rotation", "corner"), [(90, (-5, 5)), (-90, (5, -5)), (180, (-5, -5))])
    def test_turned_as_the_file_says(self, tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
        """Counterclockwise, as ffmpeg's av_display_rotation_get states the angle."""
        media = open_media(write_clip(tmp_path / "a.mp4", rotation))
        pixels = next(media.pictures).load()
        assert pixels.shape == ((48, 64, 3) if rotation == 180 else (64, 48, 3))
        assert pixels[corner].mean() > 230
        assert pixels[5, 5].mean() < 30

    def test_there_and_back(self, tmp_path: Path) -> None:
        """Pictures of different sizes: the video is as large as the largest, rounded up to even numbers."""
        pytest.importorskip("av")
        files = []
        for k, size in enumerate([(61, 40), (61, 47)]):
            files.append(tmp_path / f"{k}.png")
            Image.new("RGB", size, (100 * k, 0, 100)).save(files[-1])
        assert write_video(tmp_path / "out.mp4", files, Fraction(30000, 1001))
        media = open_media(tmp_path / "out.mp4")
        first, second = [picture.load() for picture in media.pictures]
        assert first.shape == second.shape == (48, 62, 3)
        assert np.abs(first[20, 20].astype(int) - [0, 0, 100]).max() < 12
        assert np.abs(second[20, 20].astype(int) - [100, 0, 100]).max() < 12
        assert first[45, 20].min() > 240
        assert media.rate == Fraction(30000, 1001)
        assert not write_video(tmp_path / "none.mp4", [], Fraction(1))

    def test_damaged(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "a.mp4")
        content = clip.read_bytes()
        for k, damaged in enumerate([b"", b"no video", content[:200]]):
            path = tmp_path / f"{k}.mp4"
            path.write_bytes(damaged)
            with pytest.raises(DataError, match="not a readable video"):
                open_media(path)

    def test_a_colon_is_no_protocol(self, tmp_path: Path) -> None:
        write_clip(tmp_path / "a.mp4").rename(tmp_path / "12:30.mp4")
        media = open_media(tmp_path / "12:30.mp4")
        assert len(list(media.pictures)) == 7

    def test_metadata_that_is_not_utf8(self, tmp_path: Path) -> None:
        av = pytest.importorskip("av")
        clip = write_clip(tmp_path / "a.mp4")
        with av.open(str(clip)) as old, av.open(str(tmp_path / "b.mp4"), "w") as new:
            new.metadata["title"] = "TITLE!"
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        content = (tmp_path / "b.mp4").read_bytes()
        assert content.count(b"TITLE!") == 1
        (tmp_path / "b.mp4").write_bytes(content.replace(b"TITLE!", b"TIT\xff\xfe!"))
        assert len(list(open_media(tmp_path / "b.mp4").pictures)) == 7

    @pytest.mark.parametrize("start", ["ffconcat version 1.0\nfile ", "#EXTM3U\n#EXTINF:1,\n"])
    def test_a_list_of_other_files_is_no_video(self, tmp_path: Path, start: str) -> None:
        clip = write_clip(tmp_path / "a.mp4")
        (tmp_path / "list.mp4").write_text(f"{start}{clip.name}\n")
        with pytest.raises(DataError, match="not a readable video"):
            open_media(tmp_path / "list.mp4")

    def test_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        (tmp_path / "a.mp4").write_bytes(b"x")
        with pytest.raises(DataError, match=r"pip install \"pri3d\[video\]\""):
            open_media(tmp_path / "a.mp4")
        assert not write_video(tmp_path / "b.mp4", [tmp_path / "a.png"], Fraction(1))


class TestPredicted:
    @pytest.mark.thorough
    def test_a_video(self, run: Path, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mp4")
        out = predict(run, clip, tmp_path / "out")
        dark = [(read_ids(out / f"clip-{k:06d}.png")[30:, 40:] == 0).all() for k in range(7)]
        assert dark == [value < 128 for value in VALUES]
        overlay = out / "clip_overlay.mp4"
        assert len(list(open_media(overlay).pictures)) == 7
        before = overlay.stat().st_mtime_ns
        predict(run, clip, out)
        assert Brightness.calls == 7
        assert overlay.stat().st_mtime_ns == before
        (out / "clip-000002.json").unlink()
        predict(run, clip, out)
        assert Brightness.calls == 8
        assert overlay.stat().st_mtime_ns > before

    def test_the_video_is_of_the_frames_of_this_call(self, run: Path, tmp_path: Path) -> None:
        """Frames are skipped where they are there; the joined video is not that of all of them."""
        clip = write_clip(tmp_path / "clip.mp4")
        overlay = tmp_path / "out" / "clip_overlay.mp4"
        for every, frames in ((1, 7), (3, 3), (4, 2), (5, 2)):
            predict(run, clip, tmp_path / "out", frame_step=every)
            media = open_media(overlay)
            assert (len(list(media.pictures)), media.rate) == (frames, Fraction(10, every))
        assert Brightness.calls == 7
        before = overlay.stat().st_mtime_ns
        predict(run, clip, tmp_path / "out", frame_step=5)
        assert overlay.stat().st_mtime_ns == before

    def test_a_video_that_ends_too_early(self, run: Path, tmp_path: Path) -> None:
        """Frames that can be decoded are there, and the command says that it did not reach the end."""
        clip = write_clip(tmp_path / "clip.mp4", codec="mpeg4")
        content = clip.read_bytes()
        clip.write_bytes(content[: len(content) - 200])
        with pytest.raises(DataError, match=r"1 of [2-7] failed.*\n.*clip\.mp4: ends after [1-6] frames"):
            predict(run, clip, tmp_path / "out")
        assert (tmp_path / "out" / "clip-000000.png").is_file()
        assert (tmp_path / "out" / "clip_overlay.mp4").is_file()

    def test_a_video_without_a_whole_frame(self, run: Path, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "clip.mkv")
        content = clip.read_bytes()
        clip.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=r"ends after 0 frames|not a readable video"):
            predict(run, clip, tmp_path / "out")

    @pytest.mark.parametrize("ending", ["gif", "webp", "png"])
    def test_an_animation_needs_no_extra(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, capsys
    ) -> None:
        source = write_animation(tmp_path / f"clip.{ending}")
        media = open_media(source, every=2)
        assert (media.total, float(media.rate)) == (4, pytest.approx(5, rel=0.02))
        values = [float(picture.load().mean()) for picture in media.pictures]
        assert values == pytest.approx(VALUES[::2], abs=4)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "av", None)
            out = predict(run, source, tmp_path / "out")
        assert 'pip install "pri3d[video]"' in capsys.readouterr().err
        assert len(list(out.glob("clip-*_overlay.jpg"))) == 7
        assert not list(out.glob("*.mp4"))
        pytest.importorskip("av")
        predict(run, source, out)
        assert Brightness.calls == 7
        assert (out / "clip_overlay.mp4").is_file()

    def test_a_cut_animation(self, run: Path, tmp_path: Path) -> None:
        source = write_animation(tmp_path / "clip.gif")
        source.write_bytes(source.read_bytes()[:-60])
        with pytest.raises(DataError, match=r"clip\.gif"):
            predict(run, source, tmp_path / "out")


def test_a_still_image_of_a_moving_format_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.gif")
    media = open_media(tmp_path / "a.gif")
    assert [picture.name for picture in media.pictures] == ["a"]
    assert media.rate is None


def test_pages_are_no_animation(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 20), (k, k, k)) for k in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert open_media(tmp_path / "a.tif").total == 1


def test_names_are_unique_whatever_the_files_are_called(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    files = ("A.png", "a.jpg", "a.jpg.png", "b.jpg", "classes.jpg", "s/classes.jpg")
    for name in files:
        (tmp_path / name).touch()
    names = [picture.name for picture in open_media(tmp_path).pictures]
    assert names[2:] == ["a.jpg-2", "b", "classes.jpg", "s/classes"]
    assert len({name.casefold() for name in names}) == len(files)


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path) -> None:
    """Where less is enough; a PNG cannot be, and small ones are read as they are."""
    large = Image.effect_noise((640, 480), 50).convert("RGB")
    for name in ("a.jpg", "b.png"):
        large.save(tmp_path / name)
    large.resize((120, 90)).save(tmp_path / "c.jpg")
    found = {picture.name: picture for picture in open_media(tmp_path, enough=128).pictures}
    assert {name: picture.load().shape[:2] for name, picture in found.items()} == {
        "a": (240, 320),
        "b": (480, 640),
        "c": (90, 120),
    }
    assert [found[name].size() for name in "abc"] == [320 * 240, 640 * 480, 120 * 90]
    assert {picture.load().shape[:2] for picture in open_media(tmp_path / "a.jpg").pictures} == {(480, 640)}


def test_a_large_picture_says_its_size(tmp_path: Path) -> None:
    Image.new("L", (5000, 4000)).save(tmp_path / "a.png")
    Image.new("L", (50, 40)).save(tmp_path / "b.png")
    assert [picture.label() for picture in open_media(tmp_path).pictures] == ["a, 20 megapixels", "b"]
