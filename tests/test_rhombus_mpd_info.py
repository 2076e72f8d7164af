"""What rhombus_mpd_info makes of a document: one fixture per behaviour, all of them in fixtures/mpd/."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rhombus_mpd_info
from rhombus_mpd_info import MpdError, Track, audio_track, parse_mpd, video_track

FIXTURES = Path(__file__).parent / "fixtures" / "mpd"
MPD_URL = "https://lan.example.org:8000/camera/dash/1754400000_3600/clip.mpd"
FOLDER = MPD_URL.rpartition("/")[0] + "/"
MINIMAL = b'<MPD><Period><SegmentTemplate media="$Number$"/></Period></MPD>'


def read(name: str, duration_sec: float = 3600, mpd_url: str = MPD_URL) -> tuple[Track, ...]:
    return parse_mpd((FIXTURES / f"{name}.mpd").read_bytes(), mpd_url, duration_sec)


def with_template(attributes: str) -> bytes:
    return MINIMAL.replace(b'media="$Number$"', attributes.encode())


# fixture, seconds asked for, segments, address of init, of the first and of the last segment (below FOLDER)
UNDERSTOOD = [
    ("template_in_adaptation_set", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("template_in_representation", 3600, 1800, "seg_init_audio.hdr", "seg_1.webm", "seg_1800.webm"),
    ("template_in_period", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("template_merged_from_all_levels", 3600, 1800, "inner_init.mp4", "outer_7.m4v", "outer_1806.m4v"),
    ("start_number_0", 3600, 1800, "seg_init.mp4", "seg_0.m4v", "seg_1799.m4v"),
    ("start_number_1", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("start_number_100", 3600, 1800, "seg_init.mp4", "seg_100.m4v", "seg_1899.m4v"),
    ("start_number_absent", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("duration_absent", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("timescale_absent", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("timescale_ntsc", 3600, 1799, "seg_init.mp4", "seg_1.m4v", "seg_1799.m4v"),
    ("timescale_ntsc", 2002, 1000, "seg_init.mp4", "seg_1.m4v", "seg_1000.m4v"),
    ("number_with_width", 3600, 1800, "seg_init.mp4", "seg_00001.m4v", "seg_01800.m4v"),
    ("number_with_width", 200_002, 100_001, "seg_init.mp4", "seg_00001.m4v", "seg_100001.m4v"),
    ("representation_id_and_bandwidth", 4, 2, "high/1400000/init.mp4", "high/01400000/1.m4v", "high/01400000/2.m4v"),
    ("dollar_escaped", 4, 2, "seg_init.mp4", "cash$_1_$.m4v", "cash$_2_$.m4v"),
    ("time_of_equal_segments", 6, 3, "seg_init.mp4", "seg_500.m4v", "seg_4500.m4v"),
    ("timeline", 3600, 6, "seg_init.mp4", "seg_5_0.m4v", "seg_10_11000.m4v"),
    ("timeline_repeated_to_the_end", 3601, 1801, "seg_init.mp4", "seg_0.m4v", "seg_3600000.m4v"),
    ("timeline_repeated_to_the_next_entry", 10, 6, "seg_init.mp4", "seg_0.m4v", "seg_9000.m4v"),
    ("timeline_with_offset", 4, 2, "seg_init.mp4", "seg_10000.m4v", "seg_12000.m4v"),
    ("timeline_with_absolute_times", 4, 2, "seg_init.mp4", "seg_1754400000000.m4v", "seg_1754400002000.m4v"),
    ("names_with_odd_characters", 2, 1, "seg_init.mp4", "a%20b%5C%C3%BC%7B0%7D_1.m4v", "a%20b%5C%C3%BC%7B0%7D_1.m4v"),
    ("query_of_its_own", 4, 2, "seg_init.mp4", "seg_1.m4v?part=1", "seg_2.m4v?part=1"),
    ("only_the_template", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("no_namespace", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("prefixed_namespace", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("document_shorter_than_requested", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("document_duration_in_period", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("no_init", 3600, 1800, None, "seg_1.m4v", "seg_1800.m4v"),
    ("segment_list_beside_template", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("utf_8_with_bom", 3600, 1800, "seg_init.mp4", "seg_1.m4v", "seg_1800.m4v"),
    ("utf_16", 3600, 1800, "seg_init.mp4", "seg_%C3%BC_1.m4v", "seg_%C3%BC_1800.m4v"),
]


@pytest.mark.parametrize(
    ("name", "duration_sec", "count", "init", "first", "last"),
    UNDERSTOOD,
    ids=[f"{row[0]}-{row[1]}" for row in UNDERSTOOD],
)
def test_a_document_gives_count_and_addresses(name, duration_sec, count, init, first, last):
    tracks = read(name, duration_sec)
    track = audio_track(tracks) or video_track(tracks)
    assert track.segment_count() == count
    assert track.init_url == (None if init is None else FOLDER + init)
    assert track.segment(0).url == FOLDER + first
    assert track.segment(count - 1).url == FOLDER + last
    for outside in (-1, count):
        with pytest.raises(IndexError):
            track.segment(outside)


# fixture, what the sentence must say
REFUSED = [
    ("refused_file_address", "not http or https with a host, but file"),
    ("refused_file_address_in_initialization", "not http or https with a host, but file"),
    ("refused_other_host", "points to https://elsewhere.example.net:443, but only https://lan.example.org:8000"),
    ("refused_other_host_in_media", "points to https://elsewhere.example.net:443"),
    ("refused_other_host_behind_a_user_part", "points to https://user part@lan.example.org:8000"),
    ("refused_other_port", "points to https://lan.example.org:8001"),
    ("refused_other_scheme", "points to http://lan.example.org:8000"),
    ("refused_host_from_a_number", "points to https://"),
    ("refused_address_malformed", "address that is malformed"),
    ("refused_port_malformed", "an address in the MPD is malformed"),
    ("refused_foreign_root", "'SmoothStreamingMedia', not an MPD"),
    ("refused_html", "HTML page"),
    ("refused_xhtml", "HTML page"),
    ("refused_json", "not well-formed XML"),
    ("refused_truncated", "not well-formed XML"),
    ("refused_empty", "empty"),
    ("refused_white_space", "empty"),
    ("refused_latin_1", "neither UTF-8 nor UTF-16"),
    ("refused_no_template", "no SegmentTemplate"),
    ("refused_media_absent", "without $Number$ or $Time$"),
    ("refused_media_without_number", "without $Number$ or $Time$"),
    ("refused_initialization_with_number", "initialization template with $Number$"),
    ("refused_unknown_identifier", "unknown $...$"),
    ("refused_lone_dollar", "unknown $...$"),
    ("refused_representation_id_absent", "$RepresentationID$"),
    ("refused_live", "live stream"),
    ("refused_two_periods", "2 Periods"),
    ("refused_no_period", "0 Periods"),
    ("refused_timescale_zero", "timescale='0'"),
    ("refused_duration_zero", "duration='0'"),
    ("refused_duration_negative", "duration='-2000'"),
    ("refused_duration_not_a_number", "duration='2e3'"),
    ("refused_duration_of_a_year", "longer than 86400 s"),
    ("refused_segments_too_many", "more than 10000000 segments"),
    ("refused_start_number_negative", "startNumber='-1'"),
    ("refused_start_number_absurd", "startNumber='999"),
    ("refused_bandwidth_not_a_number", "bandwidth='fast'"),
    ("refused_document_duration_negative", "'-PT5S' where a duration"),
    ("refused_document_duration_malformed", "'one hour' where a duration"),
    ("refused_timeline_empty", "empty SegmentTimeline"),
    ("refused_timeline_without_length", "no length (@d) at entry 1"),
    ("refused_timeline_length_zero", "d='0'"),
    ("refused_timeline_backwards", "back in time at entry 2"),
    ("refused_timeline_repeat_absurd", "more than 10000000 segments"),
    ("refused_timeline_open_in_the_middle", "repeats without end at entry 1"),
    ("refused_entity_bomb", "DOCTYPE"),
    ("refused_entity_external", "DOCTYPE"),
    ("refused_doctype_external", "DOCTYPE"),
    ("refused_entity_bomb_utf_16", "DOCTYPE"),
    ("refused_entity_bomb_utf_16_without_bom", "DOCTYPE"),
    ("refused_entity_undefined", "not well-formed XML (undefined entity"),
    ("refused_tracks_too_many", "more than 16 tracks"),
]


@pytest.mark.parametrize(("name", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_bad_document_is_refused_with_one_sentence(name, words):
    with pytest.raises(MpdError) as refusal:
        read(name)
    sentence = str(refusal.value)
    assert words in sentence
    assert "\n" not in sentence
    assert len(sentence) < 200


def test_every_fixture_is_used():
    tested = {row[0] for row in UNDERSTOOD} | {row[0] for row in REFUSED}
    source = Path(__file__).read_text(encoding="utf-8")
    unused = {path.stem for path in FIXTURES.glob("*.mpd")} - tested
    assert sorted(name for name in unused if f'read("{name}"' not in source) == []


def test_the_last_segment_is_cut_where_the_request_ends():
    track = video_track(read("template_in_adaptation_set", 7.5))
    assert [(part.start_sec, part.duration_sec) for part in map(track.segment, range(track.segment_count()))] == [
        (0.0, 2.0),
        (2.0, 2.0),
        (4.0, 2.0),
        (6.0, 1.5),
    ]


def test_a_request_shorter_than_a_segment_is_one_segment_of_that_length():
    track = video_track(read("template_in_adaptation_set", 0.5))
    assert track.segment_count() == 1
    assert track.segment(0).duration_sec == 0.5


def test_the_count_is_free_of_float_residues():
    tenths = with_template('media="$Number$" timescale="10" duration="1"')
    assert parse_mpd(tenths, MPD_URL, 0.1 + 0.2)[0].segment_count() == 3
    assert parse_mpd(tenths, MPD_URL, 0.3)[0].segment_count() == 3
    assert parse_mpd(tenths, MPD_URL, 0.300001)[0].segment_count() == 4


def test_number_index_and_start_of_a_segment_belong_together():
    segment = video_track(read("start_number_100")).segment(7)
    assert (segment.index, segment.number, segment.start_sec, segment.duration_sec) == (7, 107, 14.0, 2.0)


def test_a_timeline_gives_each_segment_its_own_start_and_length():
    track = video_track(read("timeline"))
    segments = [track.segment(index) for index in range(track.segment_count())]
    assert [segment.start_sec for segment in segments] == [0.0, 2.0, 4.0, 6.0, 9.0, 11.0]
    assert [segment.duration_sec for segment in segments] == [2.0, 2.0, 2.0, 1.5, 2.0, 2.0]
    assert [segment.number for segment in segments] == [5, 6, 7, 8, 9, 10]
    assert track.segment_sec == 2.0


@pytest.mark.parametrize("name", ["timeline_with_offset", "timeline_with_absolute_times", "time_of_equal_segments"])
def test_starts_count_from_the_clip_whatever_the_media_times_are(name):
    track = video_track(read(name, 4))
    assert [track.segment(index).start_sec for index in range(2)] == [0.0, 2.0]


def test_base_urls_are_resolved_level_by_level_and_the_first_of_several_counts():
    track = video_track(read("base_url_at_every_level", 2))
    assert track.segment(0).url == "https://lan.example.org:8000/camera/dash/media/period/set/representation/1.m4v"
    assert track.init_url == "https://lan.example.org:8000/camera/dash/media/period/set/representation/init.mp4"


def test_a_base_url_may_name_the_same_host_in_full():
    track = video_track(read("base_url_absolute_on_the_same_host", 2))
    assert track.segment(0).url == "https://LAN.example.org:8000/other/seg_1.m4v"


def test_the_default_port_is_the_same_as_no_port():
    document = with_template('media="https://wan.example.org:443/$Number$"')
    track = parse_mpd(document, "https://wan.example.org/file.mpd", 2)[0]
    assert track.segment(0).url == "https://wan.example.org:443/1"


def test_the_query_of_the_mpd_address_is_kept_where_the_segment_has_none():
    mpd_url = MPD_URL + "?_ds=h480&x-auth-ft=a{b}$$c"
    plain = video_track(read("template_in_adaptation_set", mpd_url=mpd_url))
    assert plain.segment(0).url == FOLDER + "seg_1.m4v?_ds=h480&x-auth-ft=a{b}$$c"
    assert plain.init_url == FOLDER + "seg_init.mp4?_ds=h480&x-auth-ft=a{b}$$c"
    assert video_track(read("query_of_its_own", mpd_url=mpd_url)).segment(0).url == FOLDER + "seg_1.m4v?part=1"


def test_odd_characters_of_the_mpd_address_stay_as_they_are():
    track = parse_mpd(MINIMAL, "https://lan.example.org/a$b$$/{0}/$Number$/clip.mpd", 2)[0]
    assert track.segment(0).url == "https://lan.example.org/a$b$$/{0}/$Number$/1"


def test_a_representation_id_never_moves_an_address_to_another_host():
    for hostile in ("//elsewhere.example.net", "https://elsewhere.example.net", "?a", "#a", "../..", "$Number$", "{0}"):
        document = (
            b'<MPD><Period><AdaptationSet><SegmentTemplate media="$RepresentationID$/$Number$"/>'
            b'<Representation id="%s"/></AdaptationSet></Period></MPD>' % hostile.encode()
        )
        assert parse_mpd(document, MPD_URL, 2)[0].segment(0).url.startswith("https://lan.example.org:8000/")


@pytest.mark.parametrize(
    "bad", ["", "clip.mpd", "ftp://lan.example.org/", "https://", "https://h:port/", "https://[::1/"]
)
def test_an_mpd_address_that_is_none_is_refused(bad):
    with pytest.raises(MpdError, match="address of the MPD"):
        parse_mpd(MINIMAL, bad, 2)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 1e30])
def test_a_requested_duration_without_sense_is_refused(bad):
    with pytest.raises(MpdError, match="requested duration"):
        parse_mpd(MINIMAL, MPD_URL, bad)


def test_the_best_track_of_each_kind_is_chosen():
    tracks = read("two_videos_and_two_audios")
    video, audio = video_track(tracks), audio_track(tracks)
    assert (video.kind, video.width, video.height, video.bandwidth) == ("video", 1920, 1080, 1400000)
    assert (video.codecs, video.mime_type) == ("avc1.640028", "video/mp4")
    assert audio is not None
    assert (audio.kind, audio.bandwidth, audio.codecs) == ("audio", 64000, "opus")
    assert len(tracks) == 4


def test_a_document_of_audio_alone_has_no_video_track():
    tracks = read("template_in_representation")
    assert audio_track(tracks) is tracks[0]
    with pytest.raises(MpdError, match="no video track"):
        video_track(tracks)


def test_a_document_of_video_alone_has_no_audio_track():
    assert audio_track(read("template_in_adaptation_set")) is None


def test_the_kind_comes_from_content_type_then_mime_type_then_codecs_then_file_name():
    assert read("kind_from_mime_type")[0].kind == "audio"
    assert read("kind_from_codecs")[0].kind == "video"
    assert read("kind_from_file_name")[0].kind == "audio"
    assert read("kind_other")[0].kind == "other"
    assert read("only_the_template")[0].kind == "video"


def test_what_a_document_leaves_out_is_empty_or_zero():
    track = read("only_the_template")[0]
    assert (track.mime_type, track.codecs, track.width, track.height, track.bandwidth) == ("", "", 0, 0, 0)
    assert track.document_duration_sec is None
    assert track.segment_sec == 2.0


@pytest.mark.parametrize(
    ("name", "duration_sec"),
    [
        ("template_in_adaptation_set", 3600.0),
        ("document_shorter_than_requested", 7.5),
        ("document_duration_in_period", 3720.0),
    ],
)
def test_the_duration_that_the_document_states_can_be_compared(name, duration_sec):
    assert read(name)[0].document_duration_sec == duration_sec


def test_a_huge_document_is_refused_before_it_is_read():
    huge = MINIMAL + b" " * rhombus_mpd_info.MAX_MPD_BYTES
    with pytest.raises(MpdError, match="bytes, more than 8388608"):
        parse_mpd(huge, MPD_URL, 2)


def test_a_document_of_endless_elements_is_refused_quickly():
    deep = b"<MPD>" + b"<a>" * 1_000_000
    started = time.monotonic()
    with pytest.raises(MpdError, match="more than 100000 elements"):
        parse_mpd(deep, MPD_URL, 2)
    assert time.monotonic() - started < 2


def test_a_deeply_nested_document_is_read_without_harm():
    nested = MINIMAL.replace(b"<Period>", b"<Period>" + b"<a>" * 40_000 + b"</a>" * 40_000)
    assert parse_mpd(nested, MPD_URL, 2)[0].segment_count() == 1


@pytest.mark.parametrize("name", ["refused_entity_bomb", "refused_entity_bomb_utf_16", "refused_entity_external"])
def test_the_parser_never_sees_a_document_with_a_doctype(name, monkeypatch):
    def parser(_text: str) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(rhombus_mpd_info, "fromstring", parser)
    with pytest.raises(MpdError, match="DOCTYPE"):
        read(name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "cp037", "shift_jis", "latin-1", "no-such-thing"])
def test_a_declared_encoding_hides_no_doctype(encoding):
    document = f'<?xml version="1.0" encoding="{encoding}"?>\n<!DOCTYPE MPD [<!ENTITY a "b">]><MPD>&a;</MPD>'.encode()
    with pytest.raises(MpdError, match="DOCTYPE"):
        parse_mpd(document, MPD_URL, 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037", "utf-7"])
def test_a_doctype_in_any_real_encoding_is_never_parsed(encoding):
    document = '<?xml version="1.0"?><!DOCTYPE MPD [<!ENTITY a "b">]><MPD>&a;</MPD>'.encode(encoding)
    with pytest.raises(MpdError):
        parse_mpd(document, MPD_URL, 2)


def test_memory_does_not_grow_with_the_number_of_segments():
    def peak_bytes(duration_sec: float) -> int:
        tracemalloc.start()
        track = video_track(read("template_in_adaptation_set", duration_sec))
        assert track.segment(track.segment_count() - 1).number == duration_sec // 2
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(2)
    assert peak_bytes(86_400) < peak_bytes(600) + 10_000


def test_an_endless_timeline_costs_no_memory_either():
    document = (
        b'<MPD><Period><SegmentTemplate media="$Time$" timescale="1000"><SegmentTimeline><S d="2" r="9999998"/>'
        b"</SegmentTimeline></SegmentTemplate></Period></MPD>"
    )
    track = parse_mpd(document, MPD_URL, 2)[0]
    assert track.segment_count() == 9_999_999
    assert track.segment(9_999_998).url == FOLDER + "19999996"


def test_no_address_appears_where_a_track_or_segment_is_logged():
    track = video_track(read("template_in_adaptation_set", mpd_url=MPD_URL + "?x-auth-ft=hidden"))
    assert "hidden" not in repr(track)
    assert "hidden" not in repr(track.segment(0))


def test_a_refusal_never_shows_a_query():
    for name in ("refused_other_host", "refused_file_address", "refused_address_malformed", "refused_other_port"):
        with pytest.raises(MpdError) as refusal:
            read(name, mpd_url=MPD_URL + "?x-auth-ft=hidden")
        assert "hidden" not in str(refusal.value)


# --- anything at all ---


def outcome(document: bytes, duration_sec: float = 60) -> None:
    """Either tracks whose segments all lie at the origin of the MPD, or an MpdError; no other exception."""
    try:
        tracks = parse_mpd(document, MPD_URL, duration_sec)
    except MpdError as refusal:
        assert "\n" not in str(refusal)
        return
    for track in tracks:
        for index in {0, track.segment_count() // 2, track.segment_count() - 1}:
            segment = track.segment(index)
            assert segment.url.startswith("https://lan.example.org:8000/")
            assert 0 < segment.duration_sec <= rhombus_mpd_info.MAX_SEGMENT_SEC
            assert segment.url.isascii()


@given(st.binary(max_size=2000))
def test_any_bytes_give_tracks_or_an_mpd_error(document):
    outcome(document)


@given(st.text(max_size=500), st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32"]))
def test_any_text_inside_a_document_gives_tracks_or_an_mpd_error(text, encoding):
    outcome(f"<MPD>{text}</MPD>".encode(encoding, "surrogatepass"))


PIECES = st.one_of(
    st.sampled_from(
        ["$Number$", "$Time$", "$Number%05d$", "$RepresentationID$", "$Bandwidth$", "$$", "$", "%", "{", "}"]
    ),
    st.sampled_from(
        ["/", "//", "..", "?", "#", ":", "@", "\\", "[", "]", "http:", "https:", "lan.example.org", ":8000"]
    ),
    st.sampled_from(
        ["0", "1", "-1", "2000", "1e3", "9" * 20, "PT1S", "&#10;", "&#0;", "&amp;", ".m4v", "video", "audio"]
    ),
    st.text(max_size=3).map(lambda text: text.translate({ord(sign): None for sign in '<&"'})),
)
VALUES = st.lists(PIECES, max_size=5).map("".join)
NAMES = SimpleNamespace(
    template=["initialization", "startNumber", "duration", "timescale", "presentationTimeOffset"],
    representation=["id", "bandwidth", "mimeType", "codecs", "width", "height", "contentType"],
    entry=["t", "d", "r"],
)


def attributes(names: list[str]) -> st.SearchStrategy[str]:
    pairs = st.dictionaries(st.sampled_from(names), VALUES | st.integers(-2, 10**7).map(str), max_size=4)
    return pairs.map(lambda found: "".join(f' {name}="{value}"' for name, value in found.items()))


@given(
    media=VALUES.map(lambda value: value + "$Number$"),
    base=VALUES,
    template=attributes(NAMES.template),
    representation=attributes(NAMES.representation),
    entries=st.lists(attributes(NAMES.entry), max_size=4),
    duration_sec=st.floats(min_value=0.001, max_value=1e7),
)
def test_any_values_in_a_document_give_tracks_at_its_origin_or_an_mpd_error(
    media, base, template, representation, entries, duration_sec
):
    timeline = f"<SegmentTimeline>{''.join(f'<S{entry}/>' for entry in entries)}</SegmentTimeline>" if entries else ""
    document = (
        f'<MPD><Period><BaseURL>{base}</BaseURL><AdaptationSet><SegmentTemplate media="{media}"{template}>{timeline}'
        f"</SegmentTemplate><Representation{representation}/></AdaptationSet></Period></MPD>"
    )
    outcome(document.encode("utf-8", "surrogatepass"), duration_sec)
