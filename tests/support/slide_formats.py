# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""
Small slides as the scanners of each maker write them, with what OpenSlide needs to know them.

Each has the picture and a level of half its size, and others that OpenSlide makes of Hamamatsu's JPEGs. The sides of
the picture are multiples of 128. What nobody scanned is white in it: Leica doesn't write its last rows.
"""

from __future__ import annotations

import io
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import tifffile
from imagecodecs import jpeg8_encode
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid

__all__ = ["GLASS", "SLIDE_FORMATS", "UNSCANNED", "SlideFormat", "write_dicom"]

GLASS = (100, 100, 100)  # MIRAX has no image of what is only this
UNSCANNED = 16  # last rows, which have to be white
TILE = 64
POWER = 20  # of the objective
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName")
PATIENT += ("StudyID", "StudyDate", "StudyTime")
Sizes = tuple[float, float] | None  # micrometres per pixel along x and y; None: the slide says none


@dataclass(frozen=True)
class SlideFormat:
    """
    How slides of a kind are written.

    Args:
        suffix: of the file that is opened.
        vendor: as OpenSlide calls it.
        write: with the path of that file, the picture (H, W, 3) and its pixels' sizes.
        square: whether a pixel has one size for both directions; that along x is written.
        levels: factors by which levels are smaller.
        name: of that file for a slide of a name.
        data: of the file with the pixels, where it is another.
    """

    suffix: str
    vendor: str
    write: Callable[[Path, np.ndarray, Sizes], None]
    square: bool = False
    levels: tuple[int, ...] = (1, 2)
    name: str = "{name}.{suffix}"
    data: str = ""

    def path(self, folder: Path, name: str) -> Path:
        return folder / self.name.format(name=name, suffix=self.suffix)

    def data_path(self, folder: Path, name: str) -> Path:
        return folder / (self.data or self.name).format(name=name, suffix=self.suffix)


def _halved(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.rint(picture.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))).astype(np.uint8)


def _jpeg(picture: np.ndarray, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=100, subsampling=0, **options)
    return buffer.getvalue()


def _tiles(picture: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Column, row and pixels, row by row."""
    for y in range(0, picture.shape[0], TILE):
        for x in range(0, picture.shape[1], TILE):
            yield x // TILE, y // TILE, np.ascontiguousarray(picture[y : y + TILE, x : x + TILE])


def _write_tiff(
    path: Path, picture: np.ndarray, sizes: Sizes, descriptions: tuple[str, str] = ("", ""), **options
) -> None:
    with tifffile.TiffWriter(path) as writer:
        _write_levels(writer, picture, sizes, descriptions, **options)


def _write_levels(writer, picture, sizes, descriptions=("", ""), extra=(), **options) -> None:
    """The picture with some tags more (`extra`), and its half, as tiles of JPEG."""
    for level, description in enumerate(descriptions):
        if sizes is not None:
            options |= {"resolution": tuple(10_000 / size / 2**level for size in sizes), "resolutionunit": 3}
        writer.write(
            _halved(picture) if level else picture,
            subfiletype=level,
            tile=(TILE, TILE),
            photometric="rgb",  # in the file YCbCr
            subsampling=(1, 1),
            compression="jpeg",
            compressionargs={"level": 100},
            description=description or None,
            extratags=() if level else extra,
            metadata=None,
            **options,
        )


def write_aperio(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    height, width = picture.shape[:2]
    text = f"Aperio Image Library v10\n{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE}) JPEG/RGB Q=100"
    text += f"|AppMag = {POWER}" + ("" if sizes is None else f"|MPP = {sizes[0]}")
    _write_tiff(path, picture, None, (text, text))


def write_philips(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    def attribute(name: str, value: str) -> str:
        return f'<Attribute Name="{name}" Group="0x301D" Element="0x1000" PMSVR="IString">{value}</Attribute>'

    def spacing(factor: int) -> str:  # in millimetres, along y and x
        x, y = (size / 1000 * factor for size in sizes or (1.0, 1.0))
        return attribute("DICOM_PIXEL_SPACING", f'"{y:.7f}" "{x:.7f}"')

    levels = "".join(f'<DataObject ObjectType="PixelDataRepresentation">{spacing(f)}</DataObject>' for f in (1, 2))
    image = attribute("PIM_DP_IMAGE_TYPE", "WSI") + ("" if sizes is None else spacing(1))
    image += attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", f"<Array>{levels}</Array>")
    images = f'<Array><DataObject ObjectType="DPScannedImage">{image}</DataObject></Array>'
    text = f'<DataObject ObjectType="DPUfsImport">{attribute("PIM_DP_SCANNED_IMAGES", images)}</DataObject>'
    _write_tiff(path, picture, None, (text, ""), software="Philips DP v1.0")


def write_leica(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """The collection, which is the slide, has rows below its only image."""
    height, width = picture.shape[:2]
    unit = 500 if sizes is None else round(1000 * sizes[0])  # nanometres
    scanned = height - UNSCANNED
    dimensions = "".join(f'<dimension sizeX="{width // f}" sizeY="{scanned // f}" ifd="{f - 1}"/>' for f in (1, 2))
    text = f"""<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection sizeX="{width * unit}" sizeY="{height * unit}"><image>
<pixels sizeX="{width}" sizeY="{scanned}">{dimensions}</pixels>
<view sizeX="{width * unit}" sizeY="{scanned * unit}" offsetX="0" offsetY="0"/>
<scanSettings><objectiveSettings><objective>{POWER}</objective></objectiveSettings>
<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
</image></collection></scn>"""
    _write_tiff(path, picture[:scanned], sizes and (sizes[0],) * 2, (text, ""))


def write_trestle(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """The tags of the resolution have micrometres."""
    text = f"Objective Power={POWER};OverlapsXY= 0 0 0 0;Background Color=FFFFFF"
    _write_tiff(path, picture, None, (text, ""), software="MedScan", resolution=sizes or (0, 0))


def write_ventana(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """One area of interest, whose tiles are counted from the lower left corner, there and back, without overlaps."""
    rows, columns = (side // TILE for side in picture.shape[:2])

    def number(row: int, column: int) -> int:
        up = rows - 1 - row
        return up * columns + (columns - 1 - column if up % 2 else column) + 1

    joints = [("RIGHT", (row, c), (row, c + 1)) for row in range(rows) for c in range(columns - 1)]
    joints += [("UP", (row, c), (row - 1, c)) for row in range(1, rows) for c in range(columns)]
    joint = (
        '<TileJointInfo FlagJoined="1" Confidence="99" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="0" OverlapY="0"/>'
    )
    joined = "".join(joint.format(name, number(*one), number(*other)) for name, one, other in joints)
    encoding = f"""<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{rows}"
NumCols="{columns}" Width="{TILE}" Height="{TILE}" Pos-X="0" Pos-Y="0">{joined}</ImageInfo></SlideStitchInfo>
<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>"""
    resolution = "" if sizes is None else f'ScanRes="{sizes[0]}"'
    scan = f'<iScan Magnification="{POWER}" {resolution} Z-layers="1" UnitNumber="2000515"/>'
    packet, label = lambda text: [(700, 1, None, text.encode(), True)], np.zeros((32, 32, 3), np.uint8)
    levels = tuple(f"level={level} mag={POWER / 2**level:g} quality=100" for level in (0, 1))
    with tifffile.TiffWriter(path) as writer:
        writer.write(label, photometric="rgb", description="Label_Image", extratags=packet(scan), metadata=None)
        _write_levels(writer, picture, None, levels, extra=packet(encoding))


def write_ndpi(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """A TIFF with two words for the place of a directory, and each level one JPEG of parts that can be read alone."""
    parts, following = [b"II*\0", b"\0" * 8], 4  # where the place of the next directory stands
    for level, pixels in enumerate((picture, _halved(picture))):
        jpeg = _jpeg(pixels, restart_marker_blocks=TILE // 8)
        start = sum(map(len, parts))
        parts.append(jpeg + b"\0" * (-len(jpeg) % 4))
        height, width = pixels.shape[:2]
        values = {254: level, 256: width, 257: height, 258: 8, 259: 7, 262: 6, 273: start, 277: 3, 278: height}
        tags = {tag: (4, struct.pack("<I", value)) for tag, value in (values | {279: len(jpeg)}).items()}
        tags |= {65420: (4, struct.pack("<I", 1)), 65421: (11, struct.pack("<f", POWER / 2**level))}
        tags |= {65424: (9, struct.pack("<i", 0))}
        here = sum(map(len, parts))
        if sizes is not None:
            for k, size in enumerate(sizes):
                parts.append(struct.pack("<II", round(1e7 / size / 2**level), 1000))
                tags[282 + k] = (5, struct.pack("<I", here + 8 * k))
            tags[296] = (3, struct.pack("<I", 3))
        entries = [struct.pack("<HHI", tag, kind, 1) + value for tag, (kind, value) in sorted(tags.items())]
        directory = sum(map(len, parts))
        # at the end the next directory's place, and the upper halves of all values
        parts += [struct.pack("<H", len(entries)), *entries, b"\0" * 8, b"\0" * 4 * len(entries)]
        content = bytearray(b"".join(parts))
        content[following : following + 8] = struct.pack("<Q", directory)
        parts, following = [bytes(content)], directory + 2 + 12 * len(entries)
    path.write_bytes(parts[0])


def _write_keys(path: Path, groups: dict[str, dict[str, object]]) -> None:
    lines = [[f"[{group}]", *(f"{key} = {value}" for key, value in keys.items())] for group, keys in groups.items()]
    path.write_text("\n".join(line for group in lines for line in group))


def _hamamatsu_keys(picture: np.ndarray, sizes: Sizes) -> dict[str, object]:
    if sizes is None:
        return {"SourceLens": POWER}
    height, width = picture.shape[:2]  # in nanometres
    physical = {"PhysicalWidth": round(width * sizes[0] * 1000), "PhysicalHeight": round(height * sizes[1] * 1000)}
    return {"SourceLens": POWER} | physical


def write_vms(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """Two JPEGs side by side, and one of the half."""
    half = picture.shape[1] // 2
    names = [f"{path.stem}_{name}.jpg" for name in ("left", "right", "map")]
    for name, pixels in zip(names, (picture[:, :half], picture[:, half:], _halved(picture)), strict=True):
        path.with_name(name).write_bytes(_jpeg(np.ascontiguousarray(pixels), restart_marker_blocks=TILE // 8))
    keys = {"NoLayers": 1, "NoJpegColumns": 2, "NoJpegRows": 1}
    keys |= {"ImageFile": names[0], "ImageFile(1,0)": names[1], "MapFile": names[2]}
    _write_keys(path, {"Virtual Microscope Specimen": keys | _hamamatsu_keys(picture, sizes)})


def write_vmu(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """12 bits of each colour, in columns of 64 pixels."""
    names = [f"{path.stem}_{name}.ngr" for name in ("image", "map")]
    for name, pixels in zip(names, (picture, _halved(picture)), strict=True):
        height, width = pixels.shape[:2]
        columns = pixels.reshape(height, width // TILE, TILE, 3).swapaxes(0, 1).astype("<u2") << 4
        head = b"GN\0\0" + struct.pack("<6I", width, height, TILE, 0, 0, 32) + b"\0" * 4
        path.with_name(name).write_bytes(head + columns.tobytes())
    keys = {"NoLayers": 1, "ImageFile": names[0], "MapFile": names[1], "BitsPerPixel": 36, "PixelOrder": "RGB"}
    _write_keys(path, {"Uncompressed Virtual Microscope Specimen": keys | _hamamatsu_keys(picture, sizes)})


def write_mirax(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """A file without content, and a folder of its name. Images are numbered by those of the whole, at each level."""
    folder = path.with_suffix("")
    folder.mkdir()
    rows, columns = (side // TILE for side in picture.shape[:2])
    identity, index, images = "0123456789ABCDEF0123456789ABCDEF", io.BytesIO(), io.BytesIO()
    start = len("01.02") + len(identity) + 8  # of the places of the levels' pages
    pages = b""
    places = []
    for level, pixels in enumerate((picture, _halved(picture))):
        records = []
        for column, row, tile in _tiles(pixels):
            if (tile != GLASS).any():
                jpeg = _jpeg(tile)
                place = (row * columns + column) * 2**level
                records.append(struct.pack("<4i", place, images.tell(), len(jpeg), 0))
                images.write(jpeg)
        here = start + 8 + len(pages)
        places.append(here)
        pages += struct.pack("<2i", 0, here + 8) + struct.pack("<2i", len(records), 0) + b"".join(records)
    index.write(b"01.02" + identity.encode() + struct.pack("<4i", start, start, *places) + pages)
    (folder / "Index.dat").write_bytes(index.getvalue())
    (folder / "Data0000.dat").write_bytes(images.getvalue())
    general = {"SLIDE_VERSION": "01.02", "SLIDE_ID": identity, "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows}
    general |= {"OBJECTIVE_MAGNIFICATION": POWER, "CameraImageDivisionsPerSide": 1}
    levels = {"HIER_COUNT": 1, "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat", "HIER_0_NAME": "Slide zoom level"}
    levels |= {"HIER_0_COUNT": 2} | {f"HIER_0_VAL_{k}_SECTION": f"LAYER_0_LEVEL_{k}_SECTION" for k in (0, 1)}
    groups = {"GENERAL": general, "HIERARCHICAL": levels, "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"}}
    for level in (0, 1):
        x, y = (size * 2**level for size in sizes or (0, 0))
        groups[f"LAYER_0_LEVEL_{level}_SECTION"] = {
            "OVERLAP_X": 0,
            "OVERLAP_Y": 0,
            "MICROMETER_PER_PIXEL_X": x,
            "MICROMETER_PER_PIXEL_Y": y,
            "IMAGE_FORMAT": "JPEG",
            "IMAGE_FILL_COLOR_BGR": int.from_bytes(bytes(GLASS[::-1])),
            "DIGITIZER_WIDTH": TILE,
            "DIGITIZER_HEIGHT": TILE,
            "IMAGE_CONCAT_FACTOR": level,
        }
    _write_keys(folder / "Slidedat.ini", groups)
    path.write_bytes(b"")


def write_sakura(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """A database, in which each colour of a tile is a grey JPEG."""
    height, width = picture.shape[:2]
    database = sqlite3.connect(path)
    database.executescript(
        """
        CREATE TABLE DataManagerSQLiteConfigXPO (TableName TEXT);
        INSERT INTO DataManagerSQLiteConfigXPO VALUES ('tiles');
        CREATE TABLE tiles (id TEXT PRIMARY KEY, data BLOB);
        INSERT INTO tiles VALUES ('++MagicBytes', 'SVGigaPixelImage');
        CREATE TABLE SVSlideDataXPO (OID INTEGER, SlideId TEXT, Date TEXT, Description TEXT, Creator TEXT,
            DiagnosisCode TEXT, Keywords TEXT);
        INSERT INTO SVSlideDataXPO VALUES (1, 's', '', '', '', '', '');
        CREATE TABLE SVHRScanDataXPO (OID INTEGER, ParentSlide INTEGER, ScanId TEXT, Date TEXT, Name TEXT,
            Description TEXT, ResolutionMmPerPix REAL, NominalLensMagnification REAL, FocussingMethod TEXT);
        """
    )
    database.execute("INSERT INTO tiles VALUES ('Header', ?)", [struct.pack("<5I", TILE, width, height, 0, 1)])
    if sizes is not None:
        values = (sizes[0] / 1000, POWER)
        database.execute("INSERT INTO SVHRScanDataXPO VALUES (1, 1, 's', '', '', '', ?, ?, '')", values)
    for factor, pixels in ((1, picture), (2, _halved(picture))):
        for column, row, tile in _tiles(pixels):
            for colour in range(3):
                name = f"T;{column * TILE * factor}|{row * TILE * factor};{factor};{colour};0"
                jpeg = _jpeg(np.ascontiguousarray(tile[..., colour]))
                database.execute("INSERT INTO tiles VALUES (?, ?)", (name, jpeg))
    database.commit()
    database.close()


def write_zeiss(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """Segments: the file's head, a block of each tile without compression, their directory, XML, no attachments."""

    def segment(name: str, content: bytes) -> bytes:
        return struct.pack("<16s2q", name.encode(), len(content), len(content)) + content

    height, width = picture.shape[:2]
    head = 32 + 512
    blocks, entries = b"", b""
    for factor, pixels in ((1, picture), (2, _halved(picture))):
        for column, row, tile in _tiles(pixels):
            entry = struct.pack("<2siqiiB5xi", b"DV", 3, head + len(blocks), 0, 0, int(factor > 1), 2)
            for axis, place in ((b"X", column), (b"Y", row)):
                start, size = place * TILE * factor, TILE * factor
                entry += struct.pack("<4siifi", axis, start, size, 0, TILE)
            data = tile[..., ::-1].tobytes()
            blocks += segment("ZISRAWSUBBLOCK", (struct.pack("<iiq", 0, 0, len(data)) + entry).ljust(256, b"\0") + data)
            entries += entry
    count = len(entries) // (32 + 2 * 20)
    directory = segment("ZISRAWDIRECTORY", struct.pack("<i124x", count) + entries)
    distances = (
        ""
        if sizes is None
        else "".join(
            f'<Distance Id="{axis}"><Value>{size}E-06</Value></Distance>'
            for axis, size in zip("XY", sizes, strict=True)
        )
    )
    xml = f"""<ImageDocument><Metadata><Information><Image><SizeX>{width}</SizeX><SizeY>{height}</SizeY>
<ObjectiveSettings><ObjectiveRef Id="Objective:1"/></ObjectiveSettings></Image><Instrument><Objectives>
<Objective Id="Objective:1"><NominalMagnification>{POWER}</NominalMagnification></Objective></Objectives></Instrument>
</Information><Scaling><Items>{distances}</Items></Scaling></Metadata></ImageDocument>""".encode()
    metadata = segment("ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml)
    places = [head + len(blocks), head + len(blocks + directory), head + len(blocks + directory + metadata)]
    first = struct.pack("<4i16x16xiqqiq", 1, 0, 0, 0, 0, places[0], places[1], 0, places[2]).ljust(512, b"\0")
    attachments = segment("ZISRAWATTDIR", struct.pack("<i252x", 0))
    path.write_bytes(segment("ZISRAWFILE", first) + blocks + directory + metadata + attachments)


def write_dicom(path: Path, picture: np.ndarray, mpp: float, tile: int = TILE, like: Path | None = None) -> None:
    """A VL Whole Slide Microscopy Image, one level of the pyramid that `like` is a level of, with JPEG frames."""
    height, width = picture.shape[:2]
    slide = Dataset()
    slide.file_meta = FileMetaDataset()
    slide.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    slide.SOPClassUID = slide.file_meta.MediaStorageSOPClassUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage
    slide.SOPInstanceUID = slide.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    slide.SeriesInstanceUID, slide.StudyInstanceUID, slide.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    for name in PATIENT:
        setattr(slide, name, "")
    if like is not None:
        for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(slide, name, pydicom.dcmread(like)[name].value)
    slide.ContainerIdentifier, slide.InstanceNumber, slide.ImageOrientationSlide = "glass", 1, [0, -1, 0, -1, 0, 0]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 10.0, 20.0
    slide.TotalPixelMatrixOriginSequence = [origin]
    slide.Modality, slide.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.Rows = slide.Columns = tile
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = height, width
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "YBR_FULL_422", 0
    slide.BitsAllocated = slide.BitsStored = 8
    slide.HighBit, slide.PixelRepresentation = 7, 0
    slide.NumberOfOpticalPaths = slide.TotalPixelMatrixFocalPlanes = 1
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000] * 2, 0.001
    groups.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [groups]
    padded = np.pad(picture, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=255)
    starts = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    frames = [jpeg8_encode(padded[y : y + tile, x : x + tile].copy(), level=100, subsampling="444") for y, x in starts]
    slide.NumberOfFrames = len(frames)
    slide.PixelData = encapsulate(frames)
    slide["PixelData"].VR = "OB"
    slide.save_as(path, enforce_file_format=True)


def write_dicom_levels(path: Path, picture: np.ndarray, sizes: Sizes) -> None:
    """A file of each level, in a folder of their own."""
    path.parent.mkdir()
    write_dicom(path, picture, 1.0)
    half = path.with_name("1.dcm")
    write_dicom(half, _halved(picture), 1.0, like=path)
    for factor, level in ((1, path), (2, half)):
        slide = pydicom.dcmread(level)
        if sizes is None:
            del slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        else:
            measures = slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
            measures.PixelSpacing = [size * factor / 1000 for size in reversed(sizes)]
        slide.save_as(level)


SLIDE_FORMATS = {
    "aperio": SlideFormat("svs", "aperio", write_aperio, square=True),
    "dicom": SlideFormat("dcm", "dicom", write_dicom_levels, name="{name}/0.{suffix}"),
    "generic-tiff": SlideFormat("tif", "generic-tiff", _write_tiff),
    "hamamatsu-ndpi": SlideFormat("ndpi", "hamamatsu", write_ndpi, levels=(1, 2, 4, 8, 16)),
    "hamamatsu-vms": SlideFormat("vms", "hamamatsu", write_vms, levels=(1, 2, 4, 8, 16), data="{name}_right.jpg"),
    "hamamatsu-vmu": SlideFormat("vmu", "hamamatsu", write_vmu, data="{name}_image.ngr"),
    "leica": SlideFormat("scn", "leica", write_leica, square=True),
    "mirax": SlideFormat("mrxs", "mirax", write_mirax, data="{name}/Data0000.dat"),
    "philips": SlideFormat("tiff", "philips", write_philips),
    "sakura": SlideFormat("svslide", "sakura", write_sakura, square=True),
    "trestle": SlideFormat("tif", "trestle", write_trestle),
    "ventana": SlideFormat("bif", "ventana", write_ventana, square=True),
    "zeiss": SlideFormat("czi", "zeiss", write_zeiss),
}
