"""
Images of requests to a served model: only picture data and public addresses, read here so that no one else reads them.

A model server that opens whatever address a client sends reads local files and the private network for it
(transformers' server does, huggingface/transformers#47230). What passes here is a picture that was decoded, written
again as PNG without metadata: the server behind decodes the very bytes that were checked, and fetches nothing.
"""

import asyncio
import base64
import binascii
import io
import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import httpx2
from PIL import Image

from modeling_sharegpt4v.images_sharegpt4v import open_image


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
REDIRECTS = 3
FETCH_SECONDS = 20
LONGEST_URL = 4096
MAX_PIXELS = 64_000_000  # 200 MB while one is decoded
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses as NAT64 writes them, RFC 6052


class Refused(Exception):
    """
    A request that does not pass.

    Args:
        message (`str`): For the client: what is wrong and where, nothing of this machine.
        status (`int`, defaults to 400): HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def is_public(address: Address) -> bool:
    """
    Whether an address is one of the open internet.

    Args:
        address (`IPv4Address` or `IPv6Address`): Resolved.

    Returns:
        `bool`: Not for private, loopback, link-local, shared, reserved and multicast ones, nor for an IPv6 form of
            such an IPv4 address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in TRANSLATED:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside and not is_public(inside):
            return False
    return address.is_global and not address.is_multicast


class ImageReader:
    """
    Turns image addresses of requests into pictures.

    Args:
        max_bytes (`int`): Largest image, encoded as it comes.
        allow (`Callable`, *optional*): Which addresses may be asked, those of [`is_public`] by default.
        at_once (`int`, defaults to 2): Pictures decoded at a time.
    """

    def __init__(self, max_bytes: int, allow: Callable[[Address], bool] = is_public, at_once: int = 2) -> None:
        self.max_bytes, self._allow = max_bytes, allow
        self._decoding = asyncio.Semaphore(at_once)

    async def read(self, url: str, where: str) -> str:
        """
        Check an image.

        Args:
            url (`str`): Data URL, or address that begins with `http://` or `https://`.
            where (`str`): Its place in the request, for messages.

        Returns:
            `str`: The same picture as a data URL of PNG.

        Raises:
            `Refused`: It is no image, too large, or at an address that is not asked.
        """
        scheme = url[:8].lower()
        if scheme.startswith("data:"):
            data = self._from_data_url(url, where)
        elif scheme.startswith(("http://", "https://")):
            data = await self._fetch(url, where)
        else:
            raise Refused(f"{where}: an image is a data URL (data:image/...;base64,) or an http or https address.")
        async with self._decoding:
            return await asyncio.to_thread(_as_png, data, where)

    def _from_data_url(self, url: str, where: str) -> bytes:
        head, comma, body = url[5:].partition(",")
        kind, *options = head.split(";")
        if not comma or not kind.lower().startswith("image/") or [one.lower() for one in options] != ["base64"]:
            raise Refused(f"{where}: a data URL must begin with data:image/TYPE;base64, and hold the image.")
        if len(body) * 3 // 4 > self.max_bytes + 2:  # base64 has four letters for three bytes
            raise self._too_large(where)
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(f"{where}: the data URL is no valid base64.") from error

    async def _fetch(self, url: str, where: str) -> bytes:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                for _ in range(1 + REDIRECTS):
                    data, url = await self._get(url, where)
                    if data is not None:
                        return data
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            raise Refused(f"{where}: the image could not be fetched.") from error
        raise Refused(f"{where}: the address redirects more than {REDIRECTS} times.")

    async def _get(self, url: str, where: str) -> tuple[bytes | None, str]:
        parts, address = await self._resolve(url, where)
        host = f"[{address}]" if address.version == 6 else str(address)
        # The address that was checked is the one that is asked: a name could resolve to another one the next time.
        pinned = parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host, fragment="").geturl()
        headers = {"host": parts.netloc, "accept": "image/*", "accept-encoding": "identity"}
        extensions = {"sni_hostname": parts.hostname}
        async with (
            httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=FETCH_SECONDS) as client,
            client.stream("GET", pinned, headers=headers, extensions=extensions) as response,
        ):
            if response.is_redirect and "location" in response.headers:
                return None, urljoin(url, response.headers["location"])
            if response.status_code != 200:
                raise Refused(f"{where}: the address answers with status {response.status_code}.")
            data = bytearray()
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > self.max_bytes:
                    raise self._too_large(where)
        return bytes(data), url

    async def _resolve(self, url: str, where: str) -> tuple:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Refused(f"{where}: the address cannot be read.") from error
        if (
            len(url) > LONGEST_URL
            or parts.scheme not in ("http", "https")
            or not parts.hostname
            or "@" in parts.netloc
        ):
            raise Refused(f"{where}: an address is http or https, with a host, without user name and password.")
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(parts.hostname, port or 80, type=socket.SOCK_STREAM)
            addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        except (OSError, UnicodeError, ValueError) as error:
            raise Refused(f"{where}: the host of the address is not known.") from error
        if not addresses or not all(map(self._allow, addresses)):
            raise Refused(f"{where}: the address is not public, and is not asked.")
        return parts, addresses[0]

    def _too_large(self, where: str) -> Refused:
        return Refused(f"{where}: the image has more than {self.max_bytes / 2**20:g} MiB.", 413)


def _as_png(data: bytes, where: str) -> str:
    try:
        with Image.open(io.BytesIO(data)) as header:
            pixels = header.width * header.height
        if pixels > MAX_PIXELS:
            raise Refused(f"{where}: the image has more than {MAX_PIXELS // 10**6} million pixels.", 413)
        image = open_image(data)
    except (ValueError, OSError, MemoryError, Image.DecompressionBombError, SyntaxError) as error:
        raise Refused(f"{where}: this is no image that can be read whole.") from error
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # loopback is fast, compression is not
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
