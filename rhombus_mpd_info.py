"""Reads a DASH media presentation description (MPD) and says at which address each segment lies.

    tracks = parse_mpd(document, "https://host/dash/1754400000/3600/vod/file.mpd", 3600)
    track = video_track(tracks)
    track.init_url, track.segment_count(), track.segment(0).url

Needs: nothing beyond Python. State: none, and no network: bytes go in, values come out.

Understood is what recorded footage needs: one static Period whose segments are given by a SegmentTemplate,
counted by @duration or listed in a SegmentTimeline. Everything else is refused with one sentence.
The document comes from a host whose certificate was perhaps not checked (LAN). Therefore no entity is ever expanded,
no address leaves the origin of the MPD, and no number in it decides how much memory is used.
Clauses are those of ISO/IEC 23009-1.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from urllib.parse import quote, urljoin, urlsplit, urlunsplit
from xml.etree.ElementTree import Element, ParseError, fromstring

MAX_MPD_BYTES = 8 * 1024 * 1024
MAX_ELEMENTS = 100_000  # about 35 MB as a tree; a day of 2 s segments, each with an S of its own, has 43,200
MAX_TRACKS = 16  # a camera has one or two
MAX_SEGMENTS = 10_000_000  # 231 days of 2 s segments
MAX_SEGMENT_SEC = 86_400
DEFAULT_SEGMENT_SEC = 2  # what Rhombus devices cut, for a template without @duration
DEFAULT_PORTS = {"http": 80, "https": 443}
URL_SAFE = "%/:?#[]@!$&'()*+,;=~"  # everything else is percent-encoded, so a backslash is never taken for a slash

# 5.3.9.4.4: the identifiers of an address template; "$$" stands for one "$", a width is only for numbers.
IDENTIFIER = re.compile(r"\$(?:(RepresentationID)|(Number|Time|Bandwidth)(?:%0([0-9]{1,2})d)?)?\$")
# xs:duration; years and months have no fixed length, so they may only be zero.
DURATION = re.compile(
    r"P(?=[T0-9])(?:0+Y)?(?:0+M)?(?:([0-9]{1,6})D)?"
    r"(?:T(?=[0-9])(?:([0-9]{1,9})H)?(?:([0-9]{1,9})M)?(?:([0-9]{1,9}(?:\.[0-9]{1,18})?)S)?)?"
)
HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+)?html\b", re.IGNORECASE)
KIND_OF_CODEC = re.compile(r"(?P<video>avc|hvc|hev|vp0?[89]|av01)|(?P<audio>opus|mp4a|vorbis|flac|ac-3|ec-3)", re.I)
KIND_OF_SUFFIX = {"m4v": "video", "mp4": "video", "m4a": "audio", "webm": "audio"}  # as the devices name segments


class MpdError(ValueError):
    """One clear sentence: what is wrong with the document."""


@dataclass(frozen=True)
class Segment:
    """One media segment; the start counts from the start of the Period, which is the start of the clip."""

    index: int
    number: int
    start_sec: float
    duration_sec: float
    url: str = field(repr=False)  # its query can hold a token


@dataclass(frozen=True)
class _Run:
    """Equal segments one behind the other; times are those of the media timeline, in ticks of the timescale."""

    first_index: int
    count: int
    start_ticks: int
    segment_ticks: int | Fraction  # a Fraction only where a request ends between two ticks


@dataclass(frozen=True)
class Track:
    """One Representation. Memory does not grow with the number of its segments."""

    kind: str  # "video", "audio" or "other"
    mime_type: str
    codecs: str
    width: int
    height: int
    bandwidth: int
    init_url: str | None = field(repr=False)
    document_duration_sec: float | None  # what the document says; what was requested decides
    timescale: int
    _media: str = field(repr=False)  # whole address as a format string of Number and Time
    _start_number: int = field(repr=False)
    _origin_ticks: int = field(repr=False)  # where the clip starts on the media timeline
    _runs: tuple[_Run, ...] = field(repr=False)

    @property
    def segment_sec(self) -> float:
        """The nominal segment length (of a SegmentTimeline: that of its first entry)."""
        return float(Fraction(self._runs[0].segment_ticks) / self.timescale)

    def segment_count(self) -> int:
        """ceil(requested duration / segment length), or the number of entries of a SegmentTimeline."""
        return self._runs[-1].first_index + self._runs[-1].count

    def segment(self, index: int) -> Segment:
        """The segment at an index from 0 to segment_count() - 1, else IndexError."""
        if not 0 <= index < self.segment_count():
            raise IndexError(f"segment {index} of {self.segment_count()}")
        run = self._runs[bisect_right(self._runs, index, key=lambda run: run.first_index) - 1]
        start = run.start_ticks + int((index - run.first_index) * run.segment_ticks)
        number = self._start_number + index
        return Segment(
            index=index,
            number=number,
            start_sec=(start - self._origin_ticks) / self.timescale,
            duration_sec=float(Fraction(run.segment_ticks) / self.timescale),
            url=self._media.format(Number=number, Time=start),
        )


def video_track(tracks: Iterable[Track]) -> Track:
    """The video track with the highest bandwidth."""
    best = _best(tracks, "video")
    if best is None:
        raise MpdError("the MPD holds no video track")
    return best


def audio_track(tracks: Iterable[Track]) -> Track | None:
    """The audio track with the highest bandwidth, if there is one."""
    return _best(tracks, "audio")


def _best(tracks: Iterable[Track], kind: str) -> Track | None:
    return max((track for track in tracks if track.kind == kind), key=lambda track: track.bandwidth, default=None)


# --- read ---


def parse_mpd(document: bytes, mpd_url: str, duration_sec: float) -> tuple[Track, ...]:
    """The tracks of a document in its order; duration_sec is what was asked for, and it decides the segment count."""
    if not 0 < duration_sec <= MAX_SEGMENTS * MAX_SEGMENT_SEC:
        raise MpdError(f"a requested duration of {duration_sec} s makes no sense")
    duration = Fraction(max(1, round(duration_sec * 1_000_000)), 1_000_000)  # float residues below 1 µs are dropped
    _origin(mpd_url, "the address of the MPD")
    root = _read_xml(document)
    if root.get("type", "static") != "static":
        raise MpdError("the MPD is of a live stream (its type is not static), not of recorded footage")
    periods = _children(root, "Period")
    if len(periods) != 1:
        raise MpdError(f"the MPD has {len(periods)} Periods where one is expected")
    tracks: list[Track] = []
    for position, levels in enumerate(_representations(root, periods[0])):
        if position == MAX_TRACKS:
            raise MpdError(f"the MPD has more than {MAX_TRACKS} tracks")
        template, timeline = _merged_template(levels)
        if template is not None:  # else given by a SegmentList or SegmentBase, as subtitles and thumbnails can be
            tracks.append(_track(levels, template, timeline, mpd_url, duration))
    if not tracks:
        raise MpdError("the MPD has no SegmentTemplate")
    return tuple(tracks)


def _read_xml(document: bytes) -> Element:
    """The root element, after everything is refused that could keep the parser busy or make it grow.

    The text, not the bytes, is searched for a DOCTYPE and then parsed, so no encoding can hide one. To refuse it in a
    handler of the parser would be too late: expat still works through the rest of its buffer, entities included.
    """
    if len(document) > MAX_MPD_BYTES:
        raise MpdError(f"the MPD has {len(document)} bytes, more than {MAX_MPD_BYTES}")
    if not document.strip():
        raise MpdError("the MPD is empty")
    utf_16_start = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
    try:
        text = document.decode(utf_16_start.get(document[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        raise MpdError("the MPD is neither UTF-8 nor UTF-16 text") from None
    if HTML.match(text):
        raise MpdError("the answer is an HTML page, not an MPD")
    if "<!DOCTYPE" in text:
        raise MpdError("the MPD has a DOCTYPE, which could define entities, and is refused")
    if text.count("<") > MAX_ELEMENTS:
        raise MpdError(f"the MPD has more than {MAX_ELEMENTS} elements")
    try:
        root = fromstring(text)  # noqa: S314 - without a DOCTYPE there is no entity to expand
    except ParseError as problem:
        raise MpdError(f"the MPD is not well-formed XML ({problem})") from None
    if _local_name(root) != "MPD":
        raise MpdError(f"the document is {_local_name(root)[:40]!r}, not an MPD")
    return root


def _representations(root: Element, period: Element) -> Iterator[tuple[Element, ...]]:
    """Each Representation with what lies around it, outermost first.

    A template alone is enough: of a device's document no more is certain, so what is missing below it counts as empty.
    """
    for adaptation_set in _children(period, "AdaptationSet") or [Element("AdaptationSet")]:
        for representation in _children(adaptation_set, "Representation") or [Element("Representation")]:
            yield root, period, adaptation_set, representation


def _merged_template(levels: Iterable[Element]) -> tuple[dict[str, str] | None, Element | None]:
    """SegmentTemplate attributes and SegmentTimeline; what stands further inside overrides (5.3.9.1)."""
    attributes: dict[str, str] | None = None
    timeline: Element | None = None
    for level in levels:
        for template in _children(level, "SegmentTemplate"):
            attributes = {**(attributes or {}), **template.attrib}
            timeline = next(iter(_children(template, "SegmentTimeline")), timeline)
    return attributes, timeline


def _track(
    levels: tuple[Element, ...],
    template: dict[str, str],
    timeline: Element | None,
    mpd_url: str,
    duration: Fraction,
) -> Track:
    root, period, adaptation_set, representation = levels
    common = {**adaptation_set.attrib, **representation.attrib}  # 5.3.7: a Representation inherits from its set
    known = {name: representation.attrib[key] for name, key in KNOWN_VALUES.items() if key in representation.attrib}
    bandwidth = _integer(representation.attrib, "bandwidth", 0)
    timescale = _integer(template, "timescale", 1, minimum=1)
    origin = _integer(template, "presentationTimeOffset", 0)
    if timeline is None:
        runs = _template_runs(template, timescale, origin, duration * timescale)
    else:
        entries = _children(timeline, "S")
        if "presentationTimeOffset" not in template:
            origin = _timeline_origin(entries, duration * timescale)
        runs = _timeline_runs(entries, origin + duration * timescale)
    if runs[-1].first_index + runs[-1].count > MAX_SEGMENTS:
        raise MpdError(f"the MPD asks for more than {MAX_SEGMENTS} segments")
    if max(run.segment_ticks for run in runs) > MAX_SEGMENT_SEC * timescale:
        raise MpdError(f"the MPD has segments longer than {MAX_SEGMENT_SEC} s")
    media, initialization = template.get("media", ""), template.get("initialization")
    if not _numbers_in(media):
        raise MpdError("the MPD has a media template without $Number$ or $Time$")
    if initialization is not None and _numbers_in(initialization):
        raise MpdError("the MPD has an initialization template with $Number$ or $Time$")
    base_url = _base_url(mpd_url, levels)
    return Track(
        kind=_kind(common, media),
        mime_type=common.get("mimeType", ""),
        codecs=common.get("codecs", ""),
        width=_integer(common, "width", 0),
        height=_integer(common, "height", 0),
        bandwidth=bandwidth,
        init_url=None if initialization is None else _address(initialization, base_url, mpd_url, known).format(),
        document_duration_sec=_duration(root.get("mediaPresentationDuration") or period.get("duration")),
        timescale=timescale,
        _media=_address(media, base_url, mpd_url, known),
        _start_number=_integer(template, "startNumber", 1),
        _origin_ticks=origin,
        _runs=tuple(runs),
    )


def _kind(common: Mapping[str, str], media: str) -> str:
    """From contentType, else mimeType, else codecs; a document that has none of them still has file names."""
    declared = [common.get("contentType", ""), common.get("mimeType", "").partition("/")[0]]
    for kind in filter(None, declared):
        if kind in ("video", "audio"):
            return kind
        if kind != "application":  # application/mp4 can hold anything
            return "other"
    found = KIND_OF_CODEC.match(common.get("codecs", "").strip())
    if found is not None:
        return str(found.lastgroup)
    if any(declared) or common.get("codecs"):
        return "other"
    return KIND_OF_SUFFIX.get(media.partition("?")[0].rpartition(".")[2].lower(), "other")


# --- count ---


def _template_runs(template: Mapping[str, str], timescale: int, origin: int, duration_ticks: Fraction) -> list[_Run]:
    """5.3.9.5.3: equal segments of @duration, as many as the requested time needs, the last cut where that ends."""
    segment_ticks = _integer(template, "duration", DEFAULT_SEGMENT_SEC * timescale, minimum=1)
    whole, tail_ticks = divmod(duration_ticks, segment_ticks)
    runs = [_Run(0, whole, origin, segment_ticks)]
    if tail_ticks:
        runs.append(_Run(whole, 1, origin + whole * segment_ticks, tail_ticks))
    return runs


def _timeline_origin(entries: list[Element], duration_ticks: Fraction) -> int:
    """Without @presentationTimeOffset: 0, unless the times all lie behind the clip; then they are absolute."""
    first_ticks = _integer(entries[0].attrib, "t", 0) if entries else 0
    return 0 if first_ticks < duration_ticks else first_ticks


def _timeline_runs(entries: list[Element], end_ticks: Fraction) -> list[_Run]:
    """5.3.9.6: each S says when (@t, else where the one before ended), how long (@d) and how often again (@r)."""
    if not entries:
        raise MpdError("the MPD has an empty SegmentTimeline")
    runs: list[_Run] = []
    first_index = start = 0
    for position, (entry, following) in enumerate(zip(entries, [*entries[1:], None], strict=True), start=1):
        start = _integer(entry.attrib, "t", start)
        if "d" not in entry.attrib:
            raise MpdError(f"the SegmentTimeline has no length (@d) at entry {position}")
        segment_ticks = _integer(entry.attrib, "d", 0, minimum=1)
        count = _integer(entry.attrib, "r", 0, minimum=-(2**31)) + 1
        if count <= 0:  # a negative @r: up to the next entry, which then says when it starts, or to the end
            if following is not None and "t" not in following.attrib:
                raise MpdError(f"the SegmentTimeline repeats without end at entry {position}")
            until = end_ticks if following is None else _integer(following.attrib, "t", 0)
            count = max(1, -((start - until) // segment_ticks))
        if runs and start < runs[-1].start_ticks + runs[-1].count * runs[-1].segment_ticks:
            raise MpdError(f"the SegmentTimeline goes back in time at entry {position}")
        runs.append(_Run(first_index, count, start, segment_ticks))
        first_index += count
        start += count * segment_ticks
    return runs


def _integer(attributes: Mapping[str, str], name: str, default: int, minimum: int = 0) -> int:
    """An attribute as whole number up to that of xs:unsignedLong, the widest type in the schema."""
    if name not in attributes:
        return default
    text = attributes[name].strip()
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not minimum <= int(text) < 2**64:
        raise MpdError(f"the MPD has {name}={text[:40]!r} where a whole number of at least {minimum} is expected")
    return int(text)


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    found = DURATION.fullmatch(text.strip())
    if found is None:
        raise MpdError(f"the MPD has {text[:40]!r} where a duration like PT3600S is expected")
    days, hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


# --- address ---

KNOWN_VALUES = {"RepresentationID": "id", "Bandwidth": "bandwidth"}  # identifier -> attribute of the Representation


def _numbers_in(template: str) -> bool:
    return any(found[2] in ("Number", "Time") for found in IDENTIFIER.finditer(template))


def _base_url(mpd_url: str, levels: Iterable[Element]) -> str:
    """5.6: BaseURL elements are resolved one against the other, outermost first; of several, the first counts."""
    base = mpd_url
    for level in levels:
        for element in _children(level, "BaseURL")[:1]:
            base = _join(base, (element.text or "").strip())
    return base


def _address(template: str, base_url: str, mpd_url: str, known: Mapping[str, str]) -> str:
    """A template made into a whole address, as a format string in which only Number and Time are open.

    It is resolved, and its origin compared, before anything is filled in: no value in the document can then move it
    to another host. Where the result has no query, that of the MPD address is kept.
    """
    if "$" in IDENTIFIER.sub("", template):
        raise MpdError("the MPD has an address template with an unknown $...$ in it")
    url = _join(base_url.replace("$", "$$"), template.strip())
    expected = _origin(mpd_url, "the address of the MPD")
    if _origin(url, "an address in the MPD") != expected:
        raise MpdError(f"the MPD points to {_host(url)}, but only {_host(mpd_url)}, where it came from, is allowed")
    parts = urlsplit(url)
    query = parts.query or urlsplit(mpd_url).query.replace("$", "$$")
    whole = urlunsplit(parts._replace(query=query, fragment=""))

    def fill(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name in ("Number", "Time"):
            return f"{{{name}:0{found[3] or 1}d}}"
        if name is not None and name not in known:
            raise MpdError(f"the MPD uses ${name}$, but the Representation has no such value")
        return "$" if name is None else quote(known[name].strip().rjust(int(found[3] or 0), "0"), safe="/")

    return IDENTIFIER.sub(fill, whole.replace("{", "{{").replace("}", "}}"))


def _join(base: str, reference: str) -> str:
    try:
        return urljoin(base, quote(reference, safe=URL_SAFE))
    except ValueError:
        raise MpdError("the MPD holds an address that is malformed") from None


def _origin(url: str, subject: str) -> tuple[str, str, str, int]:
    """Scheme, user part, host and port: what decides to whom a request, and the credential in it, goes."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise MpdError(f"{subject} is malformed") from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise MpdError(f"{subject} is not http or https with a host, but {parts.scheme[:20] or 'without a scheme'}")
    user = parts.netloc.rpartition("@")[0]
    return parts.scheme, user, parts.hostname, DEFAULT_PORTS[parts.scheme] if port is None else port


def _host(url: str) -> str:
    """Scheme, host and port for a message: no path or query, because those can hold a token."""
    scheme, user, host, port = _origin(url, "the address")
    return f"{scheme}://{'user part@' if user else ''}{host[:100]}:{port}"


# --- XML ---


def _local_name(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: Element, name: str) -> list[Element]:
    """Direct children by name, whatever their namespace."""
    return [child for child in element if _local_name(child) == name]
